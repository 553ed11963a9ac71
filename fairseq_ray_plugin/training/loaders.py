"""Loader processes: without what only updates have a use for; silent as orphans.

A fork makes all memory copy-on-write, and the next update copies each page that it writes: the
whole state, after the start of each epoch. What is not shared is written as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import dataloader
from torch.utils.data._utils import worker as loader_process

from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import pages


def keep_optimizer_from(
    trainer: Any, unused: Callable[[], AbstractContextManager[pages.Pages]]
) -> None:
    """Loader processes, from now on, have neither the optimizer's state nor gradients.

    Args:
        unused: what else they do not have; it stays as it is while they are forked.
    """

    @patch(dataloader._MultiProcessingDataLoaderIter, "__init__")
    def start(original: Any, *args: Any, **options: Any) -> None:
        # held until they are forked: a loader may be started by a thread, while training goes on
        tensors = _of_optimizer(trainer)
        with unused() as others, pages.not_forked([*pages.of(tensors), *others]):
            original(*args, **options)


def silence_orphans() -> None:
    """Loader processes, from now on, print no traceback of a rank that died taking a batch.

    multiprocessing/resource_sharer.py, a thread of theirs, shows whatever a connection raises.
    """

    @patch(loader_process, "_worker_loop")
    def load(original: Any, *args: Any, **options: Any) -> None:
        sys.excepthook = _show
        original(*args, **options)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _of_optimizer(trainer: Any) -> list[torch.Tensor]:
    if trainer._optimizer is None:  # which is made when it is first asked for
        return []
    optimizer = trainer.optimizer.optimizer
    states = list(optimizer.state.values())  # at once: training goes on
    state = [value for state in states for value in list(state.values())]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return [tensor for tensor in state + gradients if torch.is_tensor(tensor)]
