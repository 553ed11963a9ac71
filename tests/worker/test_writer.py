"""A process makes a checkpoint of a snapshot, as fairseq would have."""

import os
import subprocess
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from fairseq_ray_plugin.assignment import WriteCheckpoint, Written
from fairseq_ray_plugin.checkpoints import catalog, claim_places, manifests
from fairseq_ray_plugin.checkpoints.contents import EXTRA
from fairseq_ray_plugin.training import raw
from fairseq_ray_plugin.training.boundary import OPTIMIZER_ADDED
from fairseq_ray_plugin.training.deposit import DUE, Plan
from fairseq_ray_plugin.worker import writer
from fairseq_ray_plugin.worker.writer import write_checkpoint

pytestmark = pytest.mark.timeout(60)


def plan(save_dir, update, val_loss=None, best=None, **options):
    cfg = SimpleNamespace(
        save_dir=str(save_dir),
        no_save=False,
        no_epoch_checkpoints=False,
        no_last_checkpoints=False,
        checkpoint_suffix="",
        save_interval=1,
        save_interval_updates=10,
        keep_interval_updates=-1,
        keep_interval_updates_pattern=-1,
        keep_last_epochs=-1,
        keep_best_checkpoints=-1,
        best_checkpoint_metric="loss",
        maximize_best_checkpoint_metric=False,
        write_checkpoints_asynchronously=False,
    )
    vars(cfg).update(options)
    return Plan(
        cfg=cfg,
        val_loss=val_loss,
        best=best,
        update=update,
        epoch=1,
        end_of_epoch=False,
        iterator={"epoch": 1},
        suffix="",
    )


def snapshot(folder, update, due=None, training="this", size=1000):
    state = {
        "cfg": {
            "model": {"_name": "line"},
            "task": {"_name": "task"},
            "checkpoint": {"save_dir": "own"},
        },
        "model": {"weight": torch.full((size,), float(update))},
        "optimizer_history": [{"num_updates": update}],
        "extra_state": {
            "train_iterator": {"epoch": 1},
            EXTRA: {"left_out": {"params": torch.ones(5), "scaler": 1}, "training": training},
        },
    }
    path = str(folder / f"update_{update}.raw")
    raw.write(state if due is None else {**state, DUE: due}, path)
    return path


def write(path, target=None):
    return write_task(WriteCheckpoint(path, target))


def write_task(task):
    """What came of it: the writer ends, so it has a process of its own."""
    here, there = Pipe()
    if (child := os.fork()) == 0:
        write_checkpoint(task, there)
    try:
        assert child == here.recv()
        return here.recv()
    finally:
        os.waitpid(child, 0)


def load(path):
    return torch.load(path, weights_only=False)


def test_it_has_all_the_names_that_fairseq_gives_it(tmp_path):
    save_dir = tmp_path / "save"
    for update, loss, best in ((10, 5.0, None), (20, 6.0, 5.0), (30, 4.0, 5.0)):
        path = snapshot(
            tmp_path, update, plan(save_dir, update, loss, best, keep_interval_updates=2)
        )
        assert Written(str(save_dir / "checkpoint_last.pt")) == write(path)
    there = {n: load(save_dir / n) for n in os.listdir(save_dir) if n.endswith(".pt")}
    updates = {name: state["optimizer_history"][-1]["num_updates"] for name, state in there.items()}
    assert updates == {
        "checkpoint_1_20.pt": 20,
        "checkpoint_1_30.pt": 30,
        "checkpoint_best.pt": 30,
        "checkpoint_last.pt": 30,
    }
    last = there["checkpoint_last.pt"]
    assert DUE not in last
    assert {"scaler": 1} == last["extra_state"][EXTRA]["left_out"], "as large as stock's"
    for name in there:
        catalog.verify(str(save_dir / name))
        assert manifests.read(str(save_dir / name)) is not None


def test_without_a_last_one_it_goes_by_its_own_name(tmp_path):
    due = plan(tmp_path / "save", 10, no_last_checkpoints=True)
    name = str(tmp_path / "save" / "checkpoint_1_10.pt")
    assert Written(name) == write(snapshot(tmp_path, 10, due))


def test_without_the_optimizers_state_where_fairseq_would_leave_it_out(tmp_path):
    due = plan(tmp_path / "save", 10)
    path = snapshot(tmp_path, 10)
    state = raw.read(path)
    state["extra_state"][EXTRA][OPTIMIZER_ADDED] = True
    raw.write({**state, DUE: due, "last_optimizer_state": {"state": {}}}, path)
    write(path)
    last = load(tmp_path / "save" / "checkpoint_last.pt")
    assert "last_optimizer_state" not in last
    assert OPTIMIZER_ADDED not in last["extra_state"][EXTRA]


def test_a_worse_one_is_not_the_best(tmp_path):
    save_dir = tmp_path / "save"
    write(snapshot(tmp_path, 10, plan(save_dir, 10, 5.0, 4.0)))
    assert not (save_dir / "checkpoint_best.pt").exists()


def test_where_fairseq_wants_none_none_is_written(tmp_path):
    save_dir = tmp_path / "save"
    due = plan(save_dir, 7, no_last_checkpoints=True)
    assert Written(None) == write(snapshot(tmp_path, 7, due))


def test_a_snapshot_becomes_the_runs_last_checkpoint_with_all_that_is_in_it(tmp_path):
    target = str(tmp_path / "save" / "checkpoint_last.pt")
    assert Written(target) == write(snapshot(tmp_path, 12), target)
    assert "params" in load(target)["extra_state"][EXTRA]["left_out"]
    catalog.verify(target)


def test_an_older_state_does_not_take_the_name_of_a_newer_one(tmp_path):
    save_dir = tmp_path / "save"
    last = save_dir / "checkpoint_last.pt"
    write(snapshot(tmp_path, 20, plan(save_dir, 20)))
    write(snapshot(tmp_path, 10, plan(save_dir, 10)))
    assert 20 == load(last)["model"]["weight"][0] and (save_dir / "checkpoint_1_10.pt").exists()
    write(snapshot(tmp_path, 11), str(last))
    assert 20 == load(last)["model"]["weight"][0]
    write(snapshot(tmp_path, 12, training="begun anew"), str(last))
    assert 12 == load(last)["model"]["weight"][0]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not allowed to mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_where_there_is_no_room_what_is_there_stays_and_it_is_said(tmp_path, small_disk):
    path = snapshot(tmp_path, 10, plan(small_disk, 10))
    write(path)
    there = sorted(os.listdir(small_disk))
    large = snapshot(tmp_path, 20, plan(small_disk, 20), size=1_000_000)
    reason = write(large)
    assert "3 MB are to be written, and 1 MB are free" in reason and str(small_disk) in reason
    (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 8192))
    assert "No space left" in write(snapshot(tmp_path, 30, plan(small_disk, 30), size=2000))
    (small_disk / "ballast").unlink()
    assert there == sorted(os.listdir(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only" in write(snapshot(tmp_path, 40, plan(small_disk, 40)))


def test_a_save_dir_that_another_run_has_taken_is_left_to_it(tmp_path):
    claim_places.place_of(str(tmp_path / "save")).create("1.json", b"{}")
    for path, target in (
        (snapshot(tmp_path, 10, plan(tmp_path / "save", 10)), None),
        (snapshot(tmp_path, 11), str(tmp_path / "save" / "checkpoint_last.pt")),
    ):
        assert "was taken over by another run" in write(path, target)
    assert [] == [*(tmp_path / "save").glob("*.pt")]


def test_one_that_another_user_keeps_from_us_is_said(tmp_path):
    (tmp_path / "save").write_text("a file")
    reason = write(snapshot(tmp_path, 10, plan(tmp_path / "save", 10)))
    assert isinstance(reason, str) and str(tmp_path / "save") in reason


def test_what_fairseq_main_asks_of_the_task_is_answered(tmp_path):
    trainer = writer._Trainer(plan(tmp_path, 1), print)
    assert not hasattr(trainer.task, "get_checkpoint_dict")
