"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Iterator

import psutil

ABANDONED_S = 3600.0
"""Another host's file that nobody has written to for so long has no writer any more."""


@contextlib.contextmanager
def whole(path: str, durable: bool = False) -> Iterator[str]:
    """A file appears at `path` whole or not at all: write to the path that this yields.

    What was there before stays until then. The other path is `PATH.HOST.PID.tmp`; whoever is killed
    at it leaves it (see `remove_partials`).

    Args:
        durable: also after the machine has lost power: it is on the disk before it gets its name.
    """
    partial = f"{path}{_mark(os.getpid())}"
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


def remove_partials(folder: str) -> None:
    """What killed writers have left: of this host, or not touched for an hour."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            mark = re.search(r"\.(\d+)\.tmp$", entry.name)
            if mark is None:
                continue
            pid = int(mark.group(1))
            is_dead = entry.name.endswith(_mark(pid)) and not psutil.pid_exists(pid)
            with contextlib.suppress(OSError):
                if is_dead or time.time() - entry.stat().st_mtime > ABANDONED_S:
                    os.remove(entry.path)


def _mark(pid: int) -> str:
    return f".{socket.gethostname()}.{pid}.tmp"


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
