"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


@contextlib.contextmanager
def whole(path: str, durable: bool = False) -> Iterator[str]:
    """A file appears at `path` whole or not at all: write to the path that this yields.

    What was there before stays until then. The other path is `PATH.PID.tmp`: whoever was killed at
    it may have left its own.

    Args:
        durable: also after the machine has lost power: it is on the disk before it gets its name.
    """
    partial = f"{path}.{os.getpid()}.tmp"
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            sync_folder(folder)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: str) -> None:
    """The names in the folder are on the disk."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have nothing to do for a folder
            raise
