"""What is in a checkpoint is known without loading it, and nothing in it is run."""

import argparse
import os
import pickle

import pytest
import torch
from states import state, write_stock

from fairseq_ray_plugin.checkpoints import archive, contents
from fairseq_ray_plugin.checkpoints.contents import NoCheckpoint


def test_a_checkpoint_is_summed_up(tmp_path):
    path = write_stock(tmp_path / "any.pt", state(updates=7, width=16))
    summary = contents.summary(str(path))
    assert (7, 3, 2.5) == (summary.updates, summary.epoch, summary.loss)
    assert (2, "t", path.stat().st_size) == (summary.world_size, summary.training, summary.size)
    assert ("roberta_base", "masked_lm", "") == (summary.arch, summary.task, summary.suffix)
    assert (16, 16) == summary.shapes["layers.0.weight"] and 4 == len(summary.shapes)


def test_parameters_have_shapes_as_tensors_have(tmp_path):
    model = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "half": torch.ones(5).half(),
        "view": torch.ones(4, 6)[:, ::2],
        "number": torch.tensor(1),
    }
    path = write_stock(tmp_path / "any.pt", state() | {"model": model})
    expected = {name: tuple(value.shape) for name, value in model.items()}
    assert expected == contents.summary(str(path)).shapes


def test_options_are_found_where_older_fairseqs_kept_them(tmp_path):
    args = argparse.Namespace(arch="lm", task="language_modeling", checkpoint_suffix="_x")
    path = write_stock(tmp_path / "any.pt", state() | {"cfg": None, "args": args})
    summary = contents.summary(str(path))
    assert ("lm", "language_modeling", "_x") == (summary.arch, summary.task, summary.suffix)


def test_without_a_validation_the_best_loss_so_far_is_told(tmp_path):
    path = write_stock(tmp_path / "any.pt", state(val_loss=None))
    assert 2.25 == contents.summary(str(path)).loss
    content = state(val_loss=None)
    del content["extra_state"]["best"], content["extra_state"]["elastic"]  # as stock writes it
    summary = contents.summary(str(write_stock(path, content)))
    assert (None, None, None) == (summary.loss, summary.world_size, summary.training)


@pytest.mark.parametrize("part", ["model", "optimizer_history", "extra_state"])
def test_what_lacks_a_part_is_no_checkpoint(tmp_path, part):
    content = state()
    del content[part]
    path = write_stock(tmp_path / "checkpoint_last.pt", content)
    with pytest.raises(NoCheckpoint):
        contents.summary(str(path))


@pytest.mark.parametrize(
    "content",
    [
        {"embeddings": torch.ones(3)},
        [1, 2],
        torch.ones(3),
        state() | {"model": [torch.ones(3)]},
        state() | {"optimizer_history": []},
        state(train_iterator={"epoch": "three"}),
        {"model": {}, "optimizer_history": [{"num_updates": 3}], "extra_state": {}},  # crash.pt
    ],
)
def test_something_else_is_no_checkpoint(tmp_path, content):
    with pytest.raises(NoCheckpoint):
        contents.summary(str(write_stock(tmp_path / "any.pt", content)))


class Runs:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_it_is_run(tmp_path):
    made = str(tmp_path / "made")
    path = write_stock(tmp_path / "any.pt", state(best=Runs(made)))
    assert 10 == contents.summary(str(path)).updates
    assert not os.path.exists(made)
    torch.load(path, weights_only=False)
    assert os.path.exists(made), "as loading it does"


def test_objects_of_any_kind_are_passed_over(tmp_path):
    class_of_old = type("Meter", (dict,), {"__module__": __name__})
    globals()["Meter"] = class_of_old
    meter = class_of_old(loss=1)
    meter.attribute = {1, 2}
    odd = [meter, {frozenset([1])}, bytearray(b"x"), complex(1, 2), range(3), len, Exception("x")]
    odd.append(torch.Size([1]))
    content = state(odd=odd)
    assert 10 == contents.summary(str(write_stock(tmp_path / "any.pt", content))).updates


def test_a_plain_pickle_cannot_be_looked_into(tmp_path):
    path = tmp_path / "any.pt"
    path.write_bytes(pickle.dumps(state()))
    with pytest.raises(archive.Opaque):
        contents.summary(str(path))
