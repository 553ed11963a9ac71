"""torch's archive: a zip file of records that are stored as they are, each with its CRC32.

`torch.load` reads the directory at its end, and of each record the header before it, where that is;
it compares no CRC32. What it would read is checked here, all of it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
import zipfile
from typing import Any, BinaryIO

from fairseq_ray_plugin.checkpoints import sums
from fairseq_ray_plugin.checkpoints.sums import Damaged

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_HEADER = struct.Struct("<4s22x2H")
_ENTRY = struct.Struct("<28x3H12x")
_FLAGS = 8 | 2048
"""Those that torch sets: sizes follow the record, names are in UTF-8."""

_FOLDER = 16
"""An attribute of what torch reads as zeros."""


class Opaque(Exception):
    """A plain pickle, as torch before 1.6 wrote it: nothing tells whether it is whole."""


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    begin: int
    size: int
    crc32: int

    def check(self, file: BinaryIO) -> None:
        """Raises `Damaged`: its bytes are not those that were written."""
        if sums.part(file.fileno(), self.begin, self.size) != self.crc32:
            raise Damaged(f"record {self.name} is not what was written")


def check(path: str) -> None:
    """All that torch reads of the archive at `path` is what was written.

    Raises:
        Damaged: it is not.
        Opaque: it is no archive, and cannot tell.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        for record in records(file):
            record.check(file)


def read(path: str, name: str) -> bytes:
    """The record called `name`, whatever the archive's own folder is called; checked.

    Raises:
        as `check`; KeyError: there is no such record.
    """
    with open(path, "rb") as file:
        for record in records(file):
            if record.name.partition("/")[2] == name:
                record.check(file)
                return os.pread(file.fileno(), record.size, record.begin)
    raise KeyError(name)


def records(file: BinaryIO) -> list[Record]:
    """The records in the order in which they lie there, each with a header that is its own."""
    size = os.fstat(file.fileno()).st_size
    num, directory, length = _directory(file, size)
    entries = _entries(file)
    found: list[Record] = []
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Damaged(f"record {entry.orig_filename} begins within another one")
        found.append(_record(file, entry))
        end = found[-1].begin + found[-1].size
    names = {record.name for record in found}
    is_sound = len(entries) == len(names) == num and end <= directory
    if not is_sound or _length(os.pread(file.fileno(), length, directory), num) != length:
        raise Damaged("the directory at its end is not what was written")
    return found


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """How many records there are, where the directory of them begins, and how long it is.

    That is written twice, the second time for archives above 4 GB.
    """
    end_at = size - _END.size
    mark, disk, first_disk, num_here, num, length, begin, comment = _read(file, _END, end_at)
    if mark != b"PK\x05\x06":
        if os.pread(file.fileno(), 1, 0) == b"\x80":
            raise Opaque("it is of before torch 1.6, and cannot be looked into")
        raise Damaged("it is cut short")
    is_sound = (disk, first_disk, comment) == (0, 0, 0) and num_here == num
    mark, disk, end_64_at, num_disks = _read(file, _LOCATOR, end_at - _LOCATOR.size)
    if mark == b"PK\x06\x07":
        end_at -= _LOCATOR.size + _END_64.size
        is_sound &= (disk, end_64_at, num_disks) == (0, end_at, 1)
        mark, own_size, _, _, disk, first_disk, num_here, num_64, length_64, begin_64 = _read(
            file, _END_64, end_at
        )
        is_sound &= (mark, own_size) == (b"PK\x06\x06", _END_64.size - 12)
        is_sound &= (disk, first_disk, num_here) == (0, 0, num_64)
        is_sound &= num == min(num_64, 0xFFFF)
        is_sound &= (length, begin) == (min(length_64, 0xFFFFFFFF), min(begin_64, 0xFFFFFFFF))
        num, length, begin = num_64, length_64, begin_64
    if not is_sound or begin + length != end_at:
        raise Damaged("its last bytes are not what was written")
    return num, begin, length


def _length(directory: bytes, num: int) -> int:
    """Bytes that the entries take, as they say."""
    total = 0
    for _ in range(num):
        total += _ENTRY.size
        total += sum(_ENTRY.unpack_from(directory, total - _ENTRY.size))
    return total


def _entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(file).infolist()
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's begin
            raise
        reason = str(error)
    except Exception as error:  # the parser believes what it reads, and has no one name for it
        reason = str(error)
    raise Damaged(f"the directory at its end is not what was written ({reason})")


def _record(file: BinaryIO, entry: zipfile.ZipInfo) -> Record:
    mark, name_length, extra_length = _read(file, _HEADER, entry.header_offset)
    name_at = entry.header_offset + _HEADER.size
    name = os.pread(file.fileno(), name_length, name_at)
    is_such = (entry.compress_type, entry.volume) == (zipfile.ZIP_STORED, 0)
    is_such &= not entry.flag_bits & ~_FLAGS and not entry.external_attr & _FOLDER
    is_same = name.decode("utf-8", "replace") == entry.orig_filename
    if mark != b"PK\x03\x04" or not is_such or not is_same:
        raise Damaged(f"the header of record {entry.orig_filename} is not what was written")
    if entry.compress_size != entry.file_size:
        raise Damaged(f"record {entry.orig_filename} has two sizes")
    begin = name_at + name_length + extra_length
    return Record(entry.orig_filename, begin, entry.file_size, entry.CRC)


def _read(file: BinaryIO, fields: struct.Struct, begin: int) -> tuple[Any, ...]:
    data = os.pread(file.fileno(), fields.size, begin) if begin >= 0 else b""
    if len(data) < fields.size:
        raise Damaged("it is cut short")
    return fields.unpack(data)
