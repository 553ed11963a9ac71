"""Where checkpoints may be kept besides a disk of one's own: one interface, and what may fail.

    store = open_store("s3://bucket/prefix")   # or a folder, or whatever fsspec reaches

Open a store in the process that uses it: its connections do not survive a fork.
"""

from __future__ import annotations

import os
import posixpath
import urllib.parse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fairseq_ray_plugin.checkpoints import sums

BLOCK = 1 << 20


class StoreError(Exception):
    """One line: what could not be done, at which URL, why, and what to do. Nothing secret."""


class Unreachable(StoreError):
    """The store did not answer, or was too busy, in spite of several tries: it may pass."""


class Missing(StoreError):
    """There is no such object, or no such bucket."""


class Exists(StoreError):
    """There is such an object, and it was to be made only if there were none."""


class Damaged(StoreError, sums.Damaged):
    """What was sent or fetched is not what was written."""


class Unsupported(StoreError):
    """This store cannot do that: there is another way."""


@dataclass(frozen=True)
class Entry:
    """What a store has."""

    name: str
    """In the folder that was listed."""
    size: int
    """In bytes."""
    time: float
    """When it was put there, in seconds since 1970 by the store's clock; 0: it does not say."""


class Store(Protocol):
    """Objects by name; a name may have folders, with `/`. Every method may raise `StoreError`."""

    url: str
    """What may be shown: without passwords."""

    def put(self, local_path: str, name: str, crc32: int | None = None) -> None:
        """A file's content becomes `name`; until it is there whole, what was there before stays.

        Args:
            crc32: the content's, where it is known: it need not be read for that.

        Raises:
            Damaged: the store has something else than what was sent, time after time.
        """

    def get(self, name: str, local_path: str) -> int:
        """The content becomes a file, whole or not at all; returns its CRC32.

        Raises:
            Damaged: it is not what the store itself says that it has.
        """

    def list(self, folder: str = "") -> Sequence[Entry]:
        """What lies in a folder, but not in folders of that; nothing where there is none."""

    def delete(self, name: str) -> None:
        """It is gone, or was not there."""

    def put_bytes(self, name: str, data: bytes, if_absent: bool = False) -> None:
        """A small object.

        Args:
            if_absent: raise `Exists`, and change nothing, where there is one. Of several writers
                that do so at once, one succeeds.
        """

    def get_bytes(self, name: str) -> bytes:
        """The content of a small object."""

    def copy(self, source: str, target: str) -> None:
        """The same content under another name, made where the store is.

        Raises:
            Unsupported: the store has no such thing; `put` it once more.
        """

    def checksum(self, name: str, by_reading: bool = False) -> int | None:
        """The CRC32 of the whole content, as the store itself says; None: it does not.

        Args:
            by_reading: where it does not, all of the content is read, and there is no None.
        """

    def sweep(self, older_than_s: float) -> int:
        """Removes what writers that died have left of unfinished puts; returns how many."""


def open_store(url: str) -> Store:
    """The store that a `--save-dir` or an URL means: a folder, `s3://`, or what fsspec reaches.

    Raises:
        StoreError: the URL means nothing, or a package is missing for it.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        from fairseq_ray_plugin.checkpoints.folder import FolderStore

        return FolderStore(rest if separator else url)
    if scheme == "s3":
        from fairseq_ray_plugin.checkpoints.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StoreError(f"{url} names no bucket: give s3://BUCKET/PREFIX")
        return S3Store(bucket, prefix.strip("/"))
    from fairseq_ray_plugin.checkpoints.fsspec_store import FsspecStore

    return FsspecStore(url)


def is_url(save_dir: str) -> bool:
    """Whether a `--save-dir` is in a store, and not a folder of this machine."""
    scheme, separator, _ = save_dir.partition("://")
    return bool(separator) and scheme.isalnum()


def without_secrets(url: str) -> str:
    """The URL as it may be shown: some have passwords, keys or tokens in them."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.split("@")[-1], parts.path, "", ""))


def shown(save_dir: str) -> str:
    """A save dir for people, and for the paths of what is in it, which are logged."""
    return without_secrets(save_dir).rstrip("/") if is_url(save_dir) else save_dir


def join(folder: str, name: str) -> str:
    """`folder/name`, where either may be empty."""
    return posixpath.join(folder, name) if name else folder


def crc32_of(path: str) -> int:
    """The CRC32 of a file's content."""
    value, block = 0, memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            value = zlib.crc32(block[:size], value)
    return value


def copy_file(source: str, target: str) -> int:
    """Copies a file's content, to the disk itself; returns its CRC32."""
    value = 0
    with open(source, "rb", buffering=0) as file, open(target, "wb", buffering=0) as copy:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
            copy.write(block)
        os.fsync(copy.fileno())
    return value
