"""How the bytes of a state lie, one storage after the other: in a file, in memory, on the way.

The same on every rank that knows the sizes of the storages. Small ones come first: what may differ
by rank is small (the averages of BatchNorm), and is all in one piece then.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Range = tuple[int, int]
"""Begin and end, counted in bytes from the first storage."""

LARGE = 1 << 16
"""Bytes from which a storage is not a small one."""

BLOCK = 32 << 20
"""Bytes of memory that storages share, and give back together; a larger one has its own."""

PIECE = 8 << 20
"""Bytes that are read, sent or compared at once, at most."""

STEP = 1 << 18
"""Bytes of them that are in a core's cache while their sum is made and they are copied."""

MOST_THREADS = 8
"""More do not make memory faster."""

_ALIGNMENT = 64

_MADV_POPULATE_WRITE = 23
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_WEIGHTS = np.random.Generator(np.random.PCG64(7)).integers(
    -(2**63), 2**63, STEP // 4, dtype=np.int64
)


class Layout:
    """Where each storage is.

    Args:
        sizes: of the storages, in bytes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        small = [number for number, size in enumerate(sizes) if size < LARGE]
        large = [number for number, size in enumerate(sizes) if size >= LARGE]
        self.order = [*small, *large]
        """The storages' numbers, as they come."""

        self.offsets = [0] * len(sizes)
        self.blocks: list[Range] = []
        """What is one piece of memory; no storage is in two."""

        begin = end = 0
        for place, number in enumerate(self.order):
            wanted = aligned(max(sizes[number], 1))  # no two at a place
            if end > begin and (place == len(small) or end - begin + wanted > BLOCK):
                self.blocks.append((begin, end))
                begin = end
            self.offsets[number] = end
            end += wanted
        if end > begin:
            self.blocks.append((begin, end))
        self.end = end
        self.pieces = [
            (at, min(at + PIECE, end))
            for begin, end in self.blocks
            for at in range(begin, end, PIECE)
        ]


class Storages:
    """Storages that are somewhere, to be read as if they lay so."""

    def __init__(self, layout: Layout, storages: Sequence[torch.UntypedStorage]) -> None:
        self._layout, self._storages = layout, storages
        self._bytes = [bytes_of(storage) for storage in storages]
        self._begins = [layout.offsets[number] for number in layout.order]

    def at(self, begin: int, end: int) -> Bytes:
        """A storage's own bytes, or a copy where more than one is there, with zeros between."""
        offsets, order = self._layout.offsets, self._layout.order
        first = bisect.bisect_right(self._begins, begin) - 1
        there, offset = self._bytes[order[first]], offsets[order[first]]
        if end - offset <= len(there):
            return there[begin - offset : end - offset]
        copied = np.zeros(end - begin, dtype=np.uint8)
        for number in order[first:]:
            offset = offsets[number]
            if offset >= end:
                break
            part = self._bytes[number][max(begin - offset, 0) : max(end - offset, 0)]
            place = max(offset - begin, 0)
            copied[place : place + len(part)] = part
        return copied


class Memory:
    """New memory for all storages of a layout, which must be filled."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._begins = [begin for begin, _ in layout.blocks]
        self._blocks = [torch.UntypedStorage(end - begin) for begin, end in layout.blocks]
        self._bytes = [bytes_of(block) for block in self._blocks]

    def at(self, begin: int, end: int) -> Bytes:
        """A part of one block, to be written to."""
        block, start = self._find(begin)
        return self._bytes[block][begin - start : end - start]

    def with_pages(self, begin: int, end: int) -> Bytes:
        """As `at`, with its pages in place: to fault on each of them takes longer."""
        there = self.at(begin, end)
        address, page = there.ctypes.data, mmap.PAGESIZE
        first, last = -(-address // page), (address + len(there)) // page
        if last > first:  # where the kernel has no such advice, pages come as they are used
            _madvise(first * page, (last - first) * page, _MADV_POPULATE_WRITE)
        return there

    def storages(self) -> list[torch.UntypedStorage]:
        """The storages by number; the memory lives as long as they do."""
        found = []
        for offset, size in zip(self._layout.offsets, self._layout.sizes, strict=True):
            block, start = self._find(offset)
            found.append(self._blocks[block][offset - start : offset - start + size])
        return found

    def _find(self, at: int) -> tuple[int, int]:
        block = bisect.bisect_right(self._begins, at) - 1
        return block, self._begins[block]


def aligned(offset: int) -> int:
    """The next place where a storage may begin."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def bytes_of(storage: torch.UntypedStorage) -> Bytes:
    """The bytes themselves, for as long as the storage lives."""
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    return np.ctypeslib.as_array(array) if storage.nbytes() else np.zeros(0, dtype=np.uint8)


class Sum:
    """A number of 64 bits for a piece, step by step; two pieces that differ do not have the same.

    That is: hardly ever, 1 time in 2^33, in whatever they differ. Each 32 bits are weighed with 64
    random ones.
    """

    def __init__(self) -> None:
        self.value = 0
        self._words = np.empty(STEP // 4, dtype=np.int64)

    def add(self, step: Bytes) -> None:
        """The next bytes, `STEP` of them but for the last; a multiple of 4."""
        words = self._words[: len(step) // 4]
        np.copyto(words, step.view(np.int32))
        weighed = int(np.dot(words, _WEIGHTS[: len(words)]))
        self.value = (self.value * 0x9E3779B97F4A7C15 + weighed) % 2**64


def threads() -> ThreadPoolExecutor:
    """Threads for all that copies memory, no more than there are cores for this process."""
    return ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))))
