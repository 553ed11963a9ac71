"""Checksums of files: of what passes while it is written, and of what is there."""

from __future__ import annotations

import dataclasses
import os
from typing import BinaryIO

from isal import isal_zlib

# zlib's own does 1 GB a second, and reading a checkpoint must cost less than loading it
crc32 = isal_zlib.crc32

BLOCK = 1 << 20
"""Bytes that are read at once: they stay in the processor's cache for the sum."""

TAIL = 4096
"""Bytes of a file's end that tell whether it is the file that was meant.

torch's archives end with a directory that has the CRC32 of every record, the newest last.
"""


class Damaged(Exception):
    """A file's content is not what was written; the message says where, in a few words."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a file's content is known by."""

    size: int
    crc32: int
    tail: int
    """CRC32 of the last `TAIL` bytes."""


class Summing:
    """A file that is written from begin to end; knows the fingerprint of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = self._crc32 = 0
        self._tail = b""

    def write(self, data: bytes) -> int:
        self._size += len(data)
        self._crc32 = crc32(data, self._crc32)
        self._tail = (self._tail + bytes(data[-TAIL:]))[-TAIL:]
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._size, self._crc32, crc32(self._tail))


def whole_file(path: str) -> Fingerprint:
    """The fingerprint of what is at `path`; reads all of it."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return Fingerprint(size, part(file.fileno(), 0, size), _tail(file.fileno(), size))


def end_of_file(path: str) -> tuple[int, int]:
    """Size and CRC32 of the tail of what is at `path`."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return size, _tail(file.fileno(), size)


def part(file: int, begin: int, size: int) -> int:
    """CRC32 of `size` bytes from `begin` on.

    Raises:
        Damaged: there are not so many.
    """
    # not mapped: a disk's error would be a signal that ends the process
    block = memoryview(bytearray(min(size, BLOCK)))
    total = 0
    while size > 0:
        num = os.preadv(file, [block[: min(size, BLOCK)]], begin)
        if num == 0:
            raise Damaged("it is cut short")
        total = crc32(block[:num], total)
        begin, size = begin + num, size - num
    return total


def _tail(file: int, size: int) -> int:
    length = min(size, TAIL)
    return part(file, size - length, length)
