"""Folders in a node's memory for snapshots: one a run, gone when the run is.

A folder belongs to whoever holds a lock on the file `held` in it. The kernel drops the lock of a
process that dies, however it dies, so what nobody holds was abandoned and can go.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable

import psutil

logger = logging.getLogger(__name__)

PREFIX = "fairseq_ray_"

RAW = ".raw"
"""How names of snapshots end (see `raw`)."""

_SPARE = "spare"
"""A file that was a snapshot: its pages are there, and need not be found again."""


def roots() -> list[str]:
    """The folder whose files live in memory, and one on disk for when there is no such room."""
    in_memory = [path for path in ("/dev/shm",) if os.access(path, os.W_OK | os.X_OK)]
    if not in_memory:
        logger.warning("no /dev/shm here: snapshots go to %s, which may be slow", _on_disk())
    return [*in_memory, _on_disk()]


def _on_disk() -> str:
    return tempfile.gettempdir()


class MemoryFolder:
    """This worker's hold on the run's folders on this node; made, and others' leavings removed."""

    def __init__(self, run_id: str) -> None:
        self._held = {}
        for root in roots():
            folder = os.path.join(root, PREFIX + run_id)
            # ours too may be held by nobody: its last worker died, and what it kept is wanted
            _remove_abandoned(root, but=folder)
            while (held := _hold(folder)) is None:
                pass  # another worker took it for abandoned before it was locked
            self._held[folder] = held

    @property
    def folders(self) -> tuple[str, ...]:
        """Where snapshots may go, the best first."""
        return tuple(self._held)

    @property
    def disk(self) -> str:
        """The one on disk."""
        return self.folders[-1]

    def remove(self, paths: Iterable[str]) -> None:
        """Snapshots that are of no use any more; one that stays takes room, and that is all."""
        for path in paths:
            spare = os.path.join(os.path.dirname(path), _SPARE)
            with contextlib.suppress(OSError):
                if path.endswith(RAW) and os.stat(path).st_nlink == 1 and not os.path.exists(spare):
                    os.rename(path, spare)
                else:
                    os.remove(path)

    def remove_partials(self) -> None:
        """What killed writers left of a snapshot: `NAME.PID.tmp`, of a process that is no more."""
        for folder in self.folders:
            for path in glob.glob(os.path.join(glob.escape(folder), "*.tmp")):
                pid = path.split(".")[-2]
                if pid.isdigit() and not psutil.pid_exists(int(pid)):
                    self.remove([path])

    def release(self) -> None:
        """Let go; the last one to do so takes the folders away."""
        for folder, held in self._held.items():
            os.close(held)
            _remove_abandoned(os.path.dirname(folder))


def use_spare(path: str) -> None:
    """A file is at `path` that may be overwritten, if there is one to spare beside it."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(os.path.join(os.path.dirname(path), _SPARE), path)


def _hold(folder: str) -> int | None:
    """The lock on a folder, which is made; None: somebody removed it meanwhile."""
    file = os.path.join(folder, "held")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        held = os.open(file, os.O_CREAT | os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(held), os.stat(file)):
            return held
        os.close(held)
    except FileNotFoundError:
        pass
    return None


def _remove_abandoned(parent: str, but: str | None = None) -> None:
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not name.startswith(PREFIX) or folder == but:
            continue
        try:
            held = os.open(os.path.join(folder, "held"), os.O_RDWR)
        except OSError:
            continue  # being made, or another user's
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # somebody's
        finally:
            os.close(held)
