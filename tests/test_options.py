"""Options are refused before anything starts, and the message names option and value."""

import argparse
import contextlib

import pytest

from fairseq_ray_plugin.options import (
    ElasticConfig,
    add_ray_args,
    mini_batches_per_update,
    refuse_sharded_states,
)


def parse(*arguments: str) -> ElasticConfig:
    parser = argparse.ArgumentParser()
    add_ray_args(parser)
    return ElasticConfig.from_args(parser.parse_args(arguments))


def test_defaults_need_no_option():
    assert ElasticConfig() == parse()


@pytest.mark.parametrize("text", ["8,16", "[8, 16]", "(8,16)"])
def test_batch_sizes_are_read_by_epoch(text):
    assert (8, 16) == parse("--fix-batch-size", text).fix_batch_size


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--fix-batch-size", "0"),
        ("--fix-batch-size", "8,x"),
        ("--ray-min-workers", "0"),
        ("--ray-max-workers", "-1"),
        ("--ray-cpus-per-worker", "1.5"),
        ("--ray-max-failures", "none"),
    ],
)
def test_a_wrong_value_is_refused_by_name(option, value, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(option, value)
    assert 2 == exit_.value.code
    message = capsys.readouterr().err
    assert option in message and value.split(",")[-1] in message


def test_contradictory_limits_are_refused():
    with pytest.raises(ValueError, match="--ray-min-workers 3 .* --ray-max-workers 2"):
        parse("--ray-min-workers", "3", "--ray-max-workers", "2")


@pytest.mark.parametrize(
    ("backend", "sharding", "named"),
    [
        ("fully_sharded", "none", "--ddp-backend fully_sharded"),
        ("legacy_ddp", "os", "--zero-sharding os"),
        ("pytorch_ddp", "none", ""),
    ],
)
def test_states_of_which_each_rank_has_a_part_are_refused(backend, sharding, named):
    distributed = argparse.Namespace(ddp_backend=backend, zero_sharding=sharding)
    expected = pytest.raises(ValueError, match=f"^{named}.*is lost when its worker is")
    with expected if named else contextlib.nullcontext():
        refuse_sharded_states(distributed)


def test_a_batch_is_counted_in_sentences_or_else_in_tokens():
    assert (2, 4) == mini_batches_per_update((16, 32), batch_size=8, max_tokens=4096)
    assert (4,) == mini_batches_per_update((4096,), batch_size=None, max_tokens=1024)


def test_a_batch_that_is_no_whole_number_of_mini_batches_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="--fix-batch-size 20 .*--batch-size 8: take 16 or 24"):
        mini_batches_per_update((20,), batch_size=8, max_tokens=None)
    with pytest.raises(ValueError, match="--max-tokens 1000: take 1000"):
        mini_batches_per_update((10,), batch_size=None, max_tokens=1000)
