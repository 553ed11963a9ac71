"""Which file a generation goes on from: the same one on every rank, and this training's."""

import argparse
import types

import pytest
import torch
from fairseq.dataclass.configs import CheckpointConfig

from fairseq_ray_plugin.checkpoints.contents import Summary
from fairseq_ray_plugin.training import source
from fairseq_ray_plugin.training.boundary import StateKeeper
from fairseq_ray_plugin.training.refusal import Refused


def trainer(**checkpoint):
    """Of a model with an encoder layer and a weight that is used twice."""
    model = torch.nn.Module()
    model.embedding = torch.nn.Embedding(5, 4)
    model.output = torch.nn.Linear(4, 5, bias=False)
    model.output.weight = model.embedding.weight
    model.fc1 = torch.nn.Linear(4, 8)
    return types.SimpleNamespace(
        cfg={
            "model": argparse.Namespace(arch="lm", _name="lm"),
            "task": {"_name": "language_modeling"},
            "checkpoint": {"checkpoint_suffix": "", "finetune_from_model": None} | checkpoint,
        },
        is_fsdp=False,
        get_model=lambda: model,
    )


SHAPES = {
    "embedding.weight": (5, 4),
    "output.weight": (5, 4),
    "fc1.weight": (8, 4),
    "fc1.bias": (8,),
}
SUMMARY = {
    "updates": 10,
    "epoch": 1,
    "size": 1,
    "arch": "lm",
    "task": "language_modeling",
    "suffix": "",
    "finetuned_from": None,
    "shapes": SHAPES,
}


@pytest.mark.parametrize(
    ("belongs", "changes"),
    [
        (True, {}),
        (False, {"arch": "lm_big"}),
        (False, {"task": "translation"}),
        (False, {"suffix": "_other"}),
        (False, {"shapes": SHAPES | {"fc1.weight": (16, 4)}}),
        (False, {"shapes": {name: SHAPES[name] for name in SHAPES if name != "fc1.bias"}}),
        (False, {"shapes": SHAPES | {"fc2.weight": (4, 8)}}),
        # stock fairseq's encoder layers have these twice
        (True, {"shapes": SHAPES | {"fc1_weight": (8, 4), "fc1_bias": (8,)}}),
        (True, {"shapes": SHAPES | {"fc1.bias": None}}),
        (True, {"finetuned_from": "pretrained.pt"}),
    ],
)
def test_a_checkpoint_of_this_training_is_told_by_its_options_and_parameters(belongs, changes):
    is_such = source._is_such_as(trainer())
    assert belongs is is_such(Summary(**SUMMARY | changes))


def test_what_a_fine_tuning_began_with_is_not_of_it():
    is_such = source._is_such_as(trainer(finetune_from_model="pretrained.pt"))
    assert not is_such(Summary(**SUMMARY))
    assert is_such(Summary(**SUMMARY | {"finetuned_from": "pretrained.pt"}))


@pytest.mark.parametrize("option", ["optimizer", "lr_scheduler", "meters", "dataloader"])
def test_a_start_goes_on_unless_it_is_told_otherwise(option):
    assert source.goes_on(CheckpointConfig())
    assert not source.goes_on(CheckpointConfig(restore_file="other.pt"))
    assert not source.goes_on(CheckpointConfig(**{f"reset_{option}": True}))


def test_rank_0_alone_looks_and_the_others_hear_what_it_found_or_that_it_refuses(monkeypatch):
    def heard_by(rank, ask, sent):
        def broadcast(outcome, device):
            sent[:] = outcome if rank == 0 else sent
            outcome[:] = sent

        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
        device = types.SimpleNamespace(device="cpu")
        return source.by_rank_0(ask, device, StateKeeper(rank, 2))

    def refuse():
        raise Refused("no")

    sent = []
    assert "path" == heard_by(0, lambda: "path", sent)
    assert "path" == heard_by(1, pytest.fail, sent)
    for rank in (0, 1):
        with pytest.raises(Refused, match="no"):
            heard_by(rank, refuse, sent)
