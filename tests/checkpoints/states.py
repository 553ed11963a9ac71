"""Checkpoints for tests, such as fairseq writes them."""

import argparse
import collections

import torch

from fairseq_ray_plugin.checkpoints import files, manifests, sums
from fairseq_ray_plugin.checkpoints.contents import facts


def state(updates=10, training="t", width=32, **changes):
    """A checkpoint's state; `changes` are to its `extra_state`."""
    generator = torch.Generator().manual_seed(updates)
    model = {
        f"layers.{number}.{name}": torch.rand(width, width, generator=generator)
        for number in range(2)
        for name in ("weight", "bias")
    }
    extra = {
        "train_iterator": {"version": 2, "epoch": 3, "iterations_in_epoch": 4},
        "val_loss": 2.5,
        "best": 2.25,
        "elastic": {"training": training, "world_size": 2},
    }
    return {
        "args": None,
        "cfg": {
            "model": argparse.Namespace(arch="roberta_base", _name="roberta_base"),
            "task": {"_name": "masked_lm"},
            "checkpoint": {"checkpoint_suffix": "", "finetune_from_model": None},
        },
        "model": collections.OrderedDict(model),
        "optimizer_history": [{"num_updates": updates, "optimizer_name": "FairseqAdam"}],
        "last_optimizer_state": {"exp_avg": [torch.rand(width, generator=generator)]},
        "extra_state": extra | changes,
    }


def write_stock(path, content):
    with open(path, "wb") as file:
        torch.save(content, file)
    return path


def write_ours(path, content):
    with files.whole(str(path)) as partial, open(partial, "wb") as file:
        summing = sums.Summing(file)
        torch.save(content, summing)
    manifests.write(str(path), summing.fingerprint, facts(content))
    return path
