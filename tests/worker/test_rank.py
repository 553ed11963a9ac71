"""A rank answers its worker at any time, whatever takes long in it."""

import contextlib
import os
import subprocess
import sys
import threading
import types
from multiprocessing import Pipe

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

from fairseq_ray_plugin.assignment import Holding, Write
from fairseq_ray_plugin.checkpoints import claim_places
from fairseq_ray_plugin.faults import Fault
from fairseq_ray_plugin.protocol import Held, Hold, Saved, Unsaved
from fairseq_ray_plugin.training.boundary import Boundary, StateKeeper
from fairseq_ray_plugin.training.save_dir import SaveDir
from fairseq_ray_plugin.training.steps import Steps
from fairseq_ray_plugin.worker.deposits import Deposits
from fairseq_ray_plugin.worker.progress import Link, Progress
from fairseq_ray_plugin.worker.rank import answer, as_it_travels, set_num_resources
from fairseq_ray_plugin.worker.snapshots import Snapshots

WAIT_S = 10
"""A test fails that waits longer for what it expects."""


@pytest.fixture
def keeper():
    """That of a rank after its update 6."""
    keeper = StateKeeper(0, 1)
    task = types.SimpleNamespace(optimizer_step=lambda: None)
    module, optimizer = torch.nn.Module(), types.SimpleNamespace()
    trainer = types.SimpleNamespace(
        task=task,
        lr_step=lambda epoch, val_loss: None,
        model=module,
        criterion=module,
        optimizer=optimizer,
    )
    keeper.attach(trainer, Boundary(6, {}))
    return keeper


@pytest.fixture
def worker(keeper, monkeypatch):
    """The worker's end of the connection to a rank."""
    ends = []

    def end(code):
        ends.append(code)
        sys.exit()

    monkeypatch.setattr(os, "_exit", end)
    worker, rank = Pipe()
    link = Link(rank)
    deposits = Deposits(link, 1, Snapshots(link, keeper.put_by, (), 0), lambda: None)
    told = (rank, link, keeper, deposits, Progress(link, 0, Steps()), lambda order: None)

    def answer_until_its_end():
        with contextlib.suppress(SystemExit):
            answer(*told)

    answers = threading.Thread(target=answer_until_its_end, daemon=True)
    answers.start()
    yield worker
    worker.close()
    answers.join(WAIT_S)
    assert [1] == ends, "a rank without a worker ends"


def hear(worker):
    assert worker.poll(WAIT_S), "it does not answer"
    return worker.recv()


def test_a_rank_between_two_updates_holds_its_state_at_once(worker):
    worker.send(Hold(1, at_once=True))
    assert [Holding(), Held(6, asked=1)] == [hear(worker), hear(worker)]


def test_a_rank_that_is_to_end_its_update_is_only_asked_to(worker, keeper):
    worker.send(Hold(1, at_once=False))
    assert Holding() == hear(worker)
    assert keeper.hold_requested.wait(WAIT_S)
    assert 1 == keeper.asked


def test_a_rank_in_a_slow_optimizer_step_says_that_it_lives_as_often_as_it_is_asked(worker, keeper):
    keeper.trainer.task.optimizer_step()
    for _ in range(3):
        worker.send(Hold(1, at_once=True))
        assert Holding() == hear(worker)
    keeper.record(Boundary(7, {}))
    assert Held(7, asked=1) == hear(worker)


def test_a_rank_whose_disk_is_slow_says_that_it_lives(worker, keeper):
    is_written = threading.Event()
    keeper.save = lambda path, as_checkpoint: is_written.wait(WAIT_S)
    worker.send(Write(("folder",), "state.pt"))
    worker.send(Hold(1, at_once=True))
    assert Holding() == hear(worker)
    is_written.set()
    assert [Saved(6, "folder/state.pt"), Held(6, asked=1)] == [hear(worker), hear(worker)]


@pytest.mark.parametrize(
    ("cpu", "asked", "taken"),
    [(True, "nccl", "gloo"), (False, "nccl", "nccl"), (False, "gloo", "gloo")],
)
def test_ranks_speak_what_the_user_asks_for_but_gloo_on_cpus(cpu, asked, taken):
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.common.cpu, cfg.distributed_training.distributed_backend = cpu, asked
    rank = types.SimpleNamespace(rank=1, world_size=2, master=("node", 1), user_dir=None)
    set_num_resources(cfg, rank)
    assert taken == cfg.distributed_training.distributed_backend


def test_where_another_run_has_taken_the_save_dir_nothing_is_written(worker, keeper, tmp_path):
    keeper.save_dir, keeper.save = SaveDir(claim=1), lambda path, as_checkpoint: None
    there = claim_places.place_of(str(tmp_path))
    there.create("1.json", b"{}")
    worker.send(Write((str(tmp_path),), "checkpoint_last.pt"))
    assert Saved(6, str(tmp_path / "checkpoint_last.pt")) == hear(worker)
    there.create("2.json", b"{}")
    worker.send(Write((str(tmp_path),), "checkpoint_last.pt"))
    assert "was taken over by another run" in hear(worker).reason


def test_what_cannot_be_written_is_said(worker):
    worker.send(Write(("folder",), "state.pt"))
    unsaved = hear(worker)
    assert isinstance(unsaved, Unsaved)
    assert "there is no state to save" in unsaved.reason


def test_an_exception_travels_with_what_it_is_and_its_traceback_where_it_is_a_cause():
    """For one rank that fails a thousand others lose it."""
    travelling = {}
    for text in ("CUDA error: uncorrectable ECC error encountered", "Connection closed by peer"):
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            there = as_it_travels(error)
        travelling[there.fault] = (
            there.kind,
            there.message,
            "raise RuntimeError" in there.traceback,
        )
    assert travelling == {
        Fault.GPU_HARDWARE: (
            "RuntimeError",
            "CUDA error: uncorrectable ECC error encountered",
            True,
        ),
        Fault.GLOO: ("RuntimeError", "Connection closed by peer", False),
    }


def test_at_the_end_of_a_rank_all_is_called_that_asked_for_it_whatever_one_of_them_raises():
    """In a process of its own: what pytest has registered is not to be called."""
    code = (
        "import atexit, logging; logging.basicConfig()\n"
        "from fairseq_ray_plugin import compat; compat.apply()\n"
        "from fairseq_ray_plugin.worker import rank\n"
        "atexit.register(print, 'first'); atexit.register(lambda: 1 // 0)\n"
        "atexit.register(print, 'last'); rank.end_properly(); print('goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("last\nfirst\ngoes on\n"), done.stderr
    assert "ZeroDivisionError" in done.stderr
