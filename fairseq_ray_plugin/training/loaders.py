"""Loader processes: without the optimizer's state, which they have no use for; silent as orphans.

A fork makes all memory copy-on-write, and the next update copies each page that it writes: the
whole state, after the start of each epoch. What is not shared is written as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import dataloader
from torch.utils.data._utils import worker as loader_process

from fairseq_ray_plugin.compat.modules import patch

_MADV_DONTFORK, _MADV_DOFORK = 10, 11

LARGE = 1 << 18
"""Bytes from which a tensor is worth two system calls."""


def keep_optimizer_from(trainer: Any) -> None:
    """Loader processes, from now on, do not have the state of the trainer's optimizer."""
    if sys.platform != "linux":
        return

    @patch(dataloader._MultiProcessingDataLoaderIter, "__init__")
    def start(original: Any, *args: Any, **options: Any) -> None:
        with _not_forked(_pages(_state_of(trainer))):
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


def _state_of(trainer: Any) -> list[torch.Tensor]:
    if trainer._optimizer is None:  # which is made when it is first asked for
        return []
    # the list is made at once: a loader may be started by a thread, while training goes on
    states = list(trainer.optimizer.optimizer.state.values())
    return [value for state in states for value in list(state.values()) if torch.is_tensor(value)]


def _pages(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Address and length of pages that have nothing else: between are notes of the allocator."""
    pages = []
    for storage in (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"):
        if storage.nbytes() >= LARGE:
            begin = (storage.data_ptr() // mmap.PAGESIZE + 1) * mmap.PAGESIZE
            end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
            pages.append((begin, end - begin))
    return pages


@contextlib.contextmanager
def _not_forked(pages: list[tuple[int, int]]) -> Iterator[None]:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, length in pages:
        madvise(begin, length, _MADV_DONTFORK)
    try:
        yield
    finally:
        for begin, length in pages:
            madvise(begin, length, _MADV_DOFORK)
