"""A state at memory speed: tensors' bytes as they are, one after the other, in a file.

For a node's memory alone: nothing checks the bytes, and only this process's kind reads them. What
outlives the node is a checkpoint, which `torch.save` makes of what `read` gives.

    magic · lengths of what follows · bytes of storages (see `layout`) · pickle · sizes

The pickle has everything but the bytes: what in it was a tensor's storage is its number.
"""

from __future__ import annotations

import array
import errno
import io
import os
import pickle
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from fairseq_ray_plugin.training.layout import (
    STEP,
    Bytes,
    Layout,
    Memory,
    Storages,
    Sum,
    aligned,
    threads,
)

_MAGIC = b"fairseq_ray raw 3"
_HEADER = struct.Struct("<24sQQQ")
_BEGIN = aligned(_HEADER.size)

LEAST_RESERVE, MOST_RESERVE = 32 << 20, 1 << 30
"""Bytes of a file system in memory that are left to others, NCCL and loader processes: a sixteenth
of it, within these. They map files there, and end by a bus error where it is full."""


def write(state: Any, path: str) -> None:
    """Write `state` to a file, each byte copied once; a file that is there is overwritten.

    Args:
        state: anything that pickle takes; tensors in it must be on the CPU.

    Raises:
        OSError: there is no room, or too little would be left to others.
    """
    text, storages = split(state)
    layout = Layout([storage.nbytes() for storage in storages])
    laid = Storages(layout, storages)
    # what is there already need not be found again: pages that are in place are twice as fast
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)

    def write_piece(piece: tuple[int, int]) -> None:
        _write_at(fd, laid.at(*piece), _BEGIN + piece[0])

    try:
        total = _BEGIN + layout.end + len(text) + 8 * len(layout.sizes)
        _require_room(fd, total - os.fstat(fd).st_size)
        os.truncate(fd, total)
        header = _HEADER.pack(_MAGIC, layout.end, len(text), len(layout.sizes))
        with threads() as pool:
            list(pool.map(write_piece, layout.pieces))
        _write_at(fd, header, 0)
        sizes = array.array("Q", layout.sizes).tobytes()
        _write_at(fd, text + sizes, _BEGIN + layout.end)
    finally:
        os.close(fd)


def is_raw(path: str) -> bool:
    """Whether a file is one of ours, and not a checkpoint."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class File:
    """What was written, open to be read a piece at a time by any thread.

    Raises:
        OSError: there is no such file.
        ValueError: it is not whole.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb")
        try:
            header = self._file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise ValueError(f"{path} is no state of ours")
            _, end, length, num_sizes = _HEADER.unpack(header)
            self._file.seek(_BEGIN + end)
            self.text = self._file.read(length)
            sizes = self._file.read(8 * num_sizes)
            if len(sizes) < 8 * num_sizes:
                raise ValueError(f"{path} is cut short")
            self.layout = Layout(array.array("Q", sizes))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, begin: int, target: Bytes) -> None:
        """Fill `target` with the bytes of storages from `begin` on."""
        fd, at = self._file.fileno(), _BEGIN + begin
        while len(target):
            length = os.preadv(fd, [target], at)
            if not length:
                raise ValueError(f"{self._file.name} is cut short")
            target, at = target[length:], at + length

    def sums(self) -> tuple[int, ...]:
        """Of each piece: what has the same in another file is the same."""
        with threads() as pool:
            return tuple(pool.map(self._sum, self.layout.pieces))

    def _sum(self, piece: tuple[int, int]) -> int:
        begin, end = piece
        total, buffer = Sum(), np.empty(STEP, dtype=np.uint8)
        for at in range(begin, end, STEP):
            step = buffer[: min(STEP, end - at)]
            self.read(at, step)
            total.add(step)
        return total.value

    def pages(self) -> list[torch.UntypedStorage]:
        """The storages, as the file's own pages until they are written to."""
        size, offsets = _BEGIN + self.layout.end, self.layout.offsets
        pages = torch.UntypedStorage.from_file(self._file.name, shared=False, nbytes=size)
        return [
            pages[_BEGIN + offset : _BEGIN + offset + size]
            for offset, size in zip(offsets, self.layout.sizes, strict=True)
        ]


def read(path: str, mapped: bool = False) -> Any:
    """What was written.

    Args:
        mapped: tensors are the file's own pages until they are written to, and must be gone before
            the file is overwritten; else copies.

    Raises:
        OSError: there is no such file.
        ValueError: it is not whole.
    """
    with File(path) as file:
        if mapped:
            return join(file.text, file.pages())
        memory = Memory(file.layout)
        with threads() as pool:
            read = lambda piece: file.read(piece[0], memory.with_pages(*piece))  # noqa: E731
            list(pool.map(read, file.layout.pieces))
        return join(file.text, memory.storages())


def split(state: Any) -> tuple[bytes, list[torch.UntypedStorage]]:
    """A state as its pickle, and what is left out there: storages, each by its number."""
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(state)
    return text.getvalue(), pickler.storages


def join(text: bytes, storages: Sequence[torch.UntypedStorage]) -> Any:
    """What was `split`."""
    return _Unpickler(io.BytesIO(text), storages).load()


class _Pickler(pickle.Pickler):
    """Leaves storages out, and gives each a number."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.storages: list[torch.UntypedStorage] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        storage = value._untyped_storage
        if storage.device.type != "cpu":
            raise ValueError(f"a tensor is on {storage.device}")
        number = self._numbers.setdefault(storage._cdata, len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        return number, value.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: Sequence[torch.UntypedStorage]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, place: Any) -> torch.storage.TypedStorage:
        number, dtype = place  # one storage may be shared by tensors, as it was
        return torch.storage.TypedStorage(
            wrap_storage=self._storages[number], dtype=dtype, _internal=True
        )


def _write_at(fd: int, data: Bytes | bytes, offset: int) -> None:
    """By system calls, which say that there is no room; a mapped file ends the process."""
    data = memoryview(data)
    while len(data):
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def reserve(size: int) -> int:
    """What is left to others of a file system of so many bytes."""
    return min(max(LEAST_RESERVE, size // 16), MOST_RESERVE)


def _require_room(fd: int, wanted: int) -> None:
    there = os.fstatvfs(fd)
    spared = reserve(there.f_blocks * there.f_frsize)
    if wanted + spared > there.f_bavail * there.f_frsize:
        text = f"no room for {wanted >> 20} MB and {spared >> 20} MB to spare"
        raise OSError(errno.ENOSPC, text)
