"""A mini-batch that is too large for the GPU is dropped where that may be, and never in silence."""

import contextlib

import pytest
import torch
import trainers
from fairseq.trainer import Trainer

from fairseq_ray_plugin.training import out_of_memory

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB"  # as torch says it


class Large(trainers.Square):
    """Too large, so many times."""

    times = 0

    def forward(self, model, sample):
        if self.times:
            self.times -= 1
            raise torch.OutOfMemoryError(MESSAGE)
        return super().forward(model, sample)


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.setattr(trainers, "Square", Large)
    for name in ("train_step", "valid_step", "_log_oom"):  # what is patched is as it was afterwards
        monkeypatch.setattr(Trainer, name, getattr(Trainer, name))
    trainer = trainers.make()
    trainers.update(trainer)
    return trainer


@pytest.fixture
def told():
    return []


def hook(told, may_drop):
    out_of_memory.add_out_of_memory_hook(may_drop, lambda *what: told.append(what))


def test_where_it_may_be_dropped_training_goes_on_and_it_is_told(trainer, told):
    hook(told, may_drop=True)
    trainer.criterion.times = 1
    trainers.update(trainer)
    assert 1 == trainer.get_num_updates(), "this update was not made"
    assert [(1, True)] == told
    trainers.update(trainer)
    assert (2, [(1, True)]) == (trainer.get_num_updates(), told)


def test_where_it_may_not_be_dropped_it_is_a_failure_as_any(trainer, told):
    hook(told, may_drop=False)
    trainer.criterion.times = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        trainers.update(trainer)
    assert not told
    trainers.update(trainer)
    assert (2, []) == (trainer.get_num_updates(), told)


@pytest.mark.parametrize(
    ("backend", "is_dropped"), [("pytorch_ddp", False), ("c10d", False), ("legacy_ddp", True)]
)
def test_where_the_others_would_wait_for_its_gradients_it_is_never_dropped(
    backend, is_dropped, trainer, told, monkeypatch
):
    hook(told, may_drop=True)
    trainer.cfg.distributed_training.ddp_backend = backend
    trainer.criterion.times = 1
    expected = contextlib.nullcontext() if is_dropped else pytest.raises(RuntimeError)
    with monkeypatch.context() as of_two, expected:
        of_two.setattr(Trainer, "data_parallel_world_size", 2)
        trainers.update(trainer)
    assert is_dropped == bool(told)


@pytest.mark.parametrize("may_drop", [True, False])
def test_in_validation_it_is_tried_again_and_told(may_drop, trainer, told):
    hook(told, may_drop)
    trainer.criterion.times = 1
    trainer.valid_step({"x": torch.ones(1, 100)})
    assert [(1, False)] == told
    trainer.criterion.times = 2
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.valid_step({"x": torch.ones(1, 100)})
    trainer.valid_step({"x": torch.ones(1, 100)})
    assert [(1, False)] == told
