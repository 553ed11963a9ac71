"""A state at memory speed: tensors' bytes as they are, one after the other, in a file.

For a node's memory alone: nothing checks the bytes, and only this process's kind reads them. What
outlives the node is a checkpoint, which `torch.save` makes of what `read` gives.

    magic · offset and length of the pickle · bytes of storages, each aligned · pickle

The pickle has everything but the bytes: what in it was a tensor's storage is its place in the file.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import io
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch

_MAGIC = b"fairseq_ray raw 1"
_HEADER = struct.Struct("<24sQQ")
_ALIGNMENT = 64

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
    text, storages, end = _split(state)
    # what is there already need not be found again: pages that are in place are twice as fast
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        total = end + len(text)
        _require_room(fd, total - os.fstat(fd).st_size)
        os.truncate(fd, total)
        _write_at(fd, memoryview(_HEADER.pack(_MAGIC, end, len(text))), 0)
        for offset, storage in storages.items():
            _write_at(fd, _bytes_of(storage), offset)
        _write_at(fd, memoryview(text), end)
    finally:
        os.close(fd)


def is_raw(path: str) -> bool:
    """Whether a file is one of ours, and not a checkpoint."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read(path: str, mapped: bool = False) -> Any:
    """What was written.

    Args:
        mapped: tensors are the file's own pages until they are written to, and must be gone before
            the file is overwritten; else copies.

    Raises:
        OSError: there is no such file.
        ValueError: it is not whole.
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{path} is no state of ours")
        _, offset, length = _HEADER.unpack(header)
        file.seek(offset)
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{path} is cut short")
    pages = torch.UntypedStorage.from_file(path, shared=False, nbytes=offset + length)

    def storage_at(offset: int, length: int) -> torch.UntypedStorage:
        there = pages[offset : offset + length]
        return there if mapped else there.clone()

    return _Unpickler(io.BytesIO(text), storage_at).load()


def own(state: dict[str, Any]) -> dict[str, Any]:
    """A state that was read `mapped`, with the file's pages in the model's values alone.

    Those are copied into the model's parameters anyway, and then given up.
    """
    others = copy.deepcopy({key: value for key, value in state.items() if key != "model"})
    return {key: others.get(key, value) for key, value in state.items()}


def split(state: Any) -> tuple[bytes, dict[int, torch.UntypedStorage]]:
    """A state as its pickle, and what is left out there: storages, each by its number."""
    text, storages, _ = _split(state)
    return text, storages


def join(text: bytes, storages: dict[int, torch.UntypedStorage]) -> Any:
    """What was `split`."""
    return _Unpickler(io.BytesIO(text), lambda number, length: storages[number]).load()


def _split(state: Any) -> tuple[bytes, dict[int, torch.UntypedStorage], int]:
    """As `split`; a storage's number is its place in a file, and the last is where that ends."""
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(state)
    return text.getvalue(), pickler.storages, pickler.end


class _Pickler(pickle.Pickler):
    """Leaves storages out, and gives each a place."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.end = _aligned(_HEADER.size)
        self._offsets: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        storage = value._untyped_storage
        if storage.device.type != "cpu":
            raise ValueError(f"a tensor is on {storage.device}")
        offset = self._offsets.get(storage._cdata)
        if offset is None:
            offset = self._offsets[storage._cdata] = self.end
            self.storages[offset] = storage
            self.end = _aligned(offset + max(storage.nbytes(), 1))  # no two at a place
        return offset, storage.nbytes(), value.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, storage_at: Callable[[int, int], torch.UntypedStorage]
    ) -> None:
        super().__init__(file)
        self._storage_at = storage_at
        self._storages: dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, place: Any) -> torch.storage.TypedStorage:
        offset, length, dtype = place
        if offset not in self._storages:  # shared by tensors, as it was
            self._storages[offset] = self._storage_at(offset, length)
        return torch.storage.TypedStorage(
            wrap_storage=self._storages[offset], dtype=dtype, _internal=True
        )


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(storage: torch.UntypedStorage) -> memoryview:
    array = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(array).cast("B")


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    """By system calls, which say that there is no room; a mapped file ends the process."""
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
