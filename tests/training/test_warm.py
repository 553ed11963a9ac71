"""The first update after a restart finds its memory touched, and is the same update."""

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from test_pages import NO_LARGE_PAGES

from fairseq_ray_plugin.training import warm
from fairseq_ray_plugin.worker.server import KEEPS_MEMORY

pytestmark = [
    pytest.mark.timeout(120),
    NO_LARGE_PAGES,
]


@functools.cache
def updates(how, ddp_backend="pytorch_ddp", keeps_memory=True):
    """Page faults of each update, pages at the end, both as shares of the parameters' pages; and
    what the parameters have become."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("warm_updates.py"), how, ddp_backend],
        env={**os.environ, **(KEEPS_MEMORY if keeps_memory else {"MALLOC_TRIM_THRESHOLD_": "0"})},
        capture_output=True,
        text=True,
    )
    assert 0 == done.returncode, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return result["faults"], result["resident"], result["values"]


def test_gradients_and_buckets_are_there_after_loaders_were_forked():
    cold, pages_of_cold, values = updates("cold")
    warmed, pages_of_warmed, same_values = updates("warm")
    assert values == same_values
    # parameters, which loader processes share, gradients, and DDP's buckets
    assert cold[0] > 2.9
    assert warmed[0] < 1.5
    assert pages_of_warmed < 1.1 * pages_of_cold


def test_what_ddp_has_given_back_is_not_its_bucket():
    with warm._Allocations() as allocations:
        kept, _ = torch.empty(1_000_000), torch.empty(10)
        torch.empty(1_000_000)
    assert [(kept.data_ptr(), kept.nbytes)] == allocations.there()


def test_the_buffer_of_legacy_ddp_is_there_too():
    cold, _, values = updates("cold", "legacy_ddp")
    warmed, _, same_values = updates("warm", "legacy_ddp")
    assert values == same_values
    assert cold[0] > 2.9
    assert warmed[0] < 1.5


def test_where_memory_is_short_updates_are_as_ever():
    faults, _, values = updates("full")
    assert faults[0] > 2.9
    assert values == updates("cold")[2]


def test_what_the_allocator_would_not_keep_is_not_asked_for():
    faults, _, values = updates("warm", keeps_memory=False)
    assert 1.9 < faults[0] < 2.9  # the buckets are touched, the gradients are not
    assert values == updates("cold")[2]


@pytest.mark.parametrize(("to_come", "has_room"), [(0, True), (40, True), (41, False)])
def test_what_is_still_to_be_written_is_spared_beside_an_eighth(to_come, has_room, monkeypatch):
    memory = types.SimpleNamespace(total=800, available=140)
    monkeypatch.setattr(warm.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(warm, "Path", lambda path: Path("/nowhere"))  # in no container
    assert has_room == warm._has_room(to_come)


@pytest.mark.parametrize(("to_come", "has_room"), [(40, True), (41, False)])
def test_a_containers_limit_counts_like_the_machines(to_come, has_room, monkeypatch, tmp_path):
    memory = types.SimpleNamespace(total=8000, available=8000)
    monkeypatch.setattr(warm.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(warm, "Path", lambda path: tmp_path / Path(path).name)
    (tmp_path / "memory.max").write_text("800")
    (tmp_path / "memory.current").write_text("660")
    assert has_room == warm._has_room(to_come)
