"""How long forward and backward take a rank itself, without its waits for others.

All ranks end an update together, so who is slow shows only in what they do alone. With `legacy_ddp`
gradients are exchanged after backward; with `pytorch_ddp` while it goes on, and backward ends with
the wait for that. So the clock stops where autograd has computed the last gradient: there it calls
what was asked for during backward, in the order in which it was, and we ask as backward begins,
before `DistributedDataParallel` does, which waits then. On a GPU the two moments are events in the
stream that computes, read when they have passed: nothing waits for the clock.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from fairseq.trainer import Trainer

from fairseq_ray_plugin.compat.modules import patch

MEASURABLE = ("c10d", "pytorch_ddp", "no_c10d", "legacy_ddp")
"""Values of --ddp-backend; the others exchange parameters within forward."""

MOST_PENDING = 1000
"""So many mini-batches may be under way on a GPU, of which the time is not known yet."""


class OwnTime:
    """Seconds of forward and backward, up to where others are waited for."""

    def __init__(self) -> None:
        self._batches, self._seconds = 0, 0.0
        self._pending: list[tuple[Any, Any]] = []

    def add(self, begin: Any, end: Any) -> None:
        """A mini-batch has been computed between two readings of `now`."""
        if isinstance(begin, float):
            self._count(end - begin)
        elif len(self._pending) < MOST_PENDING:
            self._pending.append((begin, end))

    def take(self) -> tuple[int, float]:
        """Mini-batches since the last call, and their seconds in all."""
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.pop(0)
            self._count(begin.elapsed_time(end) / 1000)
        taken = self._batches, self._seconds
        self._batches, self._seconds = 0, 0.0
        return taken

    def _count(self, seconds: float) -> None:
        self._batches += 1
        self._seconds += seconds


def now(cuda: bool) -> Any:
    """This moment: seconds, or an event in the stream that computes."""
    if not cuda:
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure(own: OwnTime) -> None:
    """Patch fairseq, in this process, so that `own` hears of each mini-batch of training."""
    known: list[Any] = []

    @patch(Trainer, "train_step")
    def train_step(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer not in known:
            known[:] = [trainer]
            if trainer.cfg.distributed_training.ddp_backend in MEASURABLE:
                attach(own, trainer.task, trainer.optimizer, functools.partial(now, trainer.cuda))
        return original(trainer, *args, **kwargs)


def attach(own: OwnTime, task: Any, optimizer: Any, now: Callable[[], Any]) -> None:
    """A task's `train_step` is timed, up to the end of the last backward in it.

    Where the task does not call the optimizer's `backward`, nothing is known. Whatever the clock
    raises ends no training.
    """
    readings: list[Any] = []
    backward, step = optimizer.backward, task.train_step

    def read(first: bool = False) -> None:
        with contextlib.suppress(Exception):
            readings[0 if first else 1 :] = [now()]

    def ask_for_the_end(gradient: torch.Tensor) -> None:
        with contextlib.suppress(Exception):
            torch.autograd.Variable._execution_engine.queue_callback(read)

    @functools.wraps(backward)
    def marked_backward(loss: torch.Tensor) -> None:
        if loss.requires_grad:
            loss.register_hook(ask_for_the_end)
        backward(loss)

    @functools.wraps(step)
    def timed_step(*args: Any, **kwargs: Any) -> Any:
        readings.clear()
        read(first=True)
        result = step(*args, **kwargs)
        if len(readings) == 2:
            own.add(*readings)
        return result

    optimizer.backward, task.train_step = marked_backward, timed_step
