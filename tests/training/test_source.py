"""Which file a generation goes on from: the same one on every rank, and this training's."""

import argparse
import types
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.configs import CheckpointConfig

from fairseq_ray_plugin.checkpoints import stores
from fairseq_ray_plugin.checkpoints.contents import Summary
from fairseq_ray_plugin.training import source
from fairseq_ray_plugin.training.boundary import StateKeeper
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.save_dir import SaveDir


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


# in a store


class Store(stores.Store):
    """One that raises."""

    def __init__(self, error):
        self.error = error

    def get(self, name, local_path):
        raise self.error

    def get_bytes(self, name):
        raise stores.Missing("none")

    def list(self, folder=""):
        raise self.error


URL = "s3://bucket/run"


@pytest.fixture
def keeper(tmp_path):
    keeper = StateKeeper(0, 1)
    keeper.save_dir = SaveDir(store=URL, passage=str(tmp_path / "restored"))
    return keeper


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """A store's content is a folder."""
    folder = tmp_path / "store"
    folder.mkdir()
    open_store = stores.open_store
    monkeypatch.setattr(stores, "open_store", lambda url: open_store(str(folder)))
    return folder


def raises(monkeypatch, error):
    monkeypatch.setattr(stores, "open_store", lambda url: Store(error))


def unsharded():
    checkpoint = types.SimpleNamespace(checkpoint_suffix="")
    common = types.SimpleNamespace(model_parallel_size=1)
    cfg = types.SimpleNamespace(checkpoint=checkpoint, common=common)
    return types.SimpleNamespace(cfg=cfg, checkpoint_suffix="", device="cpu")


def test_a_recovery_from_the_store_fetches_what_the_driver_has_chosen(keeper, stored):
    (stored / "checkpoint_last.pt").write_text("state")
    cfg = CheckpointConfig(save_dir=keeper.save_dir.passage)
    path = source.choose(cfg, unsharded(), keeper, f"{URL}/checkpoint_last.pt")
    assert f"{keeper.save_dir.passage}/checkpoint_last.pt" == path
    assert "state" == Path(path).read_text()
    source.forget_fetched(keeper)
    assert not (stored.parent / "restored").exists()


def test_one_that_is_gone_is_replaced_by_another_or_it_is_said(keeper, stored, caplog, monkeypatch):
    monkeypatch.setattr(source, "_is_such_as", lambda trainer: lambda summary: True)
    cfg = CheckpointConfig(save_dir=keeper.save_dir.passage)
    with pytest.raises(Refused, match=f"is gone, and no other checkpoint is in {URL}"):
        source.choose(cfg, unsharded(), keeper, f"{URL}/checkpoint_last.pt")
    assert f"{URL}/checkpoint_last.pt cannot be gone on from" in caplog.text


@pytest.mark.parametrize("restore", [None, f"{URL}/checkpoint_last.pt"])
def test_a_store_that_is_away_is_tried_again_and_one_that_refuses_is_not(
    keeper, restore, monkeypatch
):
    monkeypatch.setattr(source, "_is_such_as", lambda trainer: lambda summary: True)
    cfg = CheckpointConfig(save_dir=keeper.save_dir.passage)
    raises(monkeypatch, stores.Unreachable("nobody answers"))
    with pytest.raises(stores.Unreachable):
        source.choose(cfg, unsharded(), keeper, restore)
    raises(monkeypatch, stores.StoreError("denied"))
    with pytest.raises(Refused, match="denied"):
        source.choose(cfg, unsharded(), keeper, restore)


def test_files_of_ranks_do_not_go_to_a_store(keeper):
    trainer = unsharded()
    trainer.checkpoint_suffix = "-shard0"
    with pytest.raises(Refused, match=f"--save-dir {URL}: each rank has a file of its own"):
        source.choose(CheckpointConfig(), trainer, keeper, None)


def test_a_file_that_is_named_in_a_store_is_fetched(keeper, stored, monkeypatch):
    (stored / "other_x.pt").write_text("state")
    trainer = unsharded()
    trainer.checkpoint_suffix = "_x"
    cfg = CheckpointConfig(restore_file="s3://bucket/other/other.pt")
    # fairseq puts the suffix into the name
    assert f"{keeper.save_dir.passage}/other.pt" == source.fetch_named(cfg, trainer, keeper)
    assert "state" == Path(f"{keeper.save_dir.passage}/other_x.pt").read_text()
    cfg = CheckpointConfig(restore_file="s3://bucket/other/none.pt")
    assert f"{keeper.save_dir.passage}/none.pt" == source.fetch_named(cfg, trainer, keeper), (
        "as ever"
    )
    raises(monkeypatch, stores.Damaged("a bit flips"))
    with pytest.raises(Refused, match="is damaged: a bit flips; name another one"):
        source.fetch_named(cfg, trainer, keeper)


def test_what_resets_begins_from_the_stores_last_one(keeper, stored):
    (stored / "checkpoint_last.pt").write_text("state")
    cfg = CheckpointConfig(reset_optimizer=True)
    assert "checkpoint_last.pt" == source.fetch_named(cfg, unsharded(), keeper)
    assert "state" == Path(f"{keeper.save_dir.passage}/checkpoint_last.pt").read_text()
    keeper.save_dir = SaveDir(passage=keeper.save_dir.passage)
    assert source.fetch_named(cfg, unsharded(), keeper) is None
