"""Pages of the memory that tensors on the CPU are in, and what the kernel is told of them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

LARGE = 1 << 18
"""Bytes from which a tensor is worth a system call."""

PIECE = 4 << 20
"""Bytes that are touched at once: meanwhile no other thread of the process gets memory."""

Pages = Sequence[tuple[int, int]]
"""Address and length of each run of them, in bytes."""

_DONTFORK, _DOFORK, _POPULATE_WRITE = 10, 11, 23


def of(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """Those that have nothing but the values of large tensors: between are an allocator's notes."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu")
    return within((s.data_ptr(), s.nbytes()) for s in storages if s.nbytes() >= LARGE)


def within(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that have nothing but what is in a range of addresses: begin and length, in bytes."""
    pages = []
    for address, length in ranges:
        begin = (address // mmap.PAGESIZE + 1) * mmap.PAGESIZE
        end = (address + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            pages.append((begin, end - begin))
    return pages


def touch(pages: Pages) -> None:
    """Each of them is there, and this process's alone, as after a write that changes nothing.

    Before Linux 5.14 nothing is done, and they are there when they are first written to.
    """
    for begin, length in pages:
        for at in range(begin, begin + length, PIECE):
            _advise(at, min(PIECE, begin + length - at), _POPULATE_WRITE)


@contextlib.contextmanager
def not_forked(pages: Pages) -> Iterator[None]:
    """Processes that are forked meanwhile do not have them; all others are as after any fork."""
    for begin, length in pages:
        _advise(begin, length, _DONTFORK)
    try:
        yield
    finally:
        for begin, length in pages:
            _advise(begin, length, _DOFORK)


def _advise(begin: int, length: int, advice: int) -> None:
    if sys.platform == "linux":
        _madvise()(begin, length, advice)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise  # type: ignore[no-any-return]
