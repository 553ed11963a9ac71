"""Mini-batches that are too large for a GPU's memory: fairseq drops them, which is to be known.

It takes an exception for one by its text (trainer.py:842), forgets what this rank had of the
update, and goes on; nothing tells of it but a warning among pages on memory. In validation
(trainer.py:1126) it tries once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fairseq.trainer import Trainer

from fairseq_ray_plugin.compat.modules import patch

REDUCE_IN_BACKWARD = ("pytorch_ddp", "c10d")
"""Where a rank drops its mini-batch, the others wait for it in backward for ever, or get what it
reduces next instead."""


def add_out_of_memory_hook(may_drop: bool, on_caught: Callable[[int, bool], None]) -> None:
    """Patch fairseq, in this process.

    Args:
        may_drop: training may go on without a mini-batch; else it fails, as where any code raises.
        on_caught: called where it goes on, with the updates so far, and whether something of the
            next one was dropped.
    """
    caught: list[bool] = []

    @patch(Trainer, "_log_oom")
    def log_oom(original: Any, trainer: Any, error: Any) -> None:
        original(trainer, error)
        caught.append(trainer.model.training)

    @contextlib.contextmanager
    def told(num_updates: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            caught.clear()  # the exception tells
            raise
        while caught:
            on_caught(num_updates, caught.pop(0))

    @patch(Trainer, "train_step")
    def train_step(original: Any, trainer: Any, samples: Any, raise_oom: bool = False) -> Any:
        with told(trainer.get_num_updates()):
            must_raise = raise_oom or not may_drop or _hangs_if_dropped(trainer)
            return original(trainer, samples, must_raise)

    @patch(Trainer, "valid_step")
    def valid_step(original: Any, trainer: Any, *args: Any, **options: Any) -> Any:
        with told(trainer.get_num_updates()):
            return original(trainer, *args, **options)


def _hangs_if_dropped(trainer: Any) -> bool:
    backend = trainer.cfg.distributed_training.ddp_backend
    return trainer.data_parallel_world_size > 1 and backend in REDUCE_IN_BACKWARD
