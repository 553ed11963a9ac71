"""Folders in a node's memory for snapshots: one a run, gone when the run is.

A folder belongs to whoever holds a lock on the file `held` in it. The kernel drops the lock of a
process that dies, however it dies, so what nobody holds was abandoned and can go.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile

logger = logging.getLogger(__name__)

PREFIX = "fairseq_ray_"


def root() -> str:
    """The folder whose files live in memory; on disk where the machine has no such folder."""
    if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK):
        return "/dev/shm"
    logger.warning("no /dev/shm here: snapshots go to %s, which may be slow", tempfile.gettempdir())
    return tempfile.gettempdir()


class MemoryFolder:
    """This worker's hold on the run's folder on this node; made, and others' leavings removed."""

    def __init__(self, run_id: str) -> None:
        parent = root()
        _remove_abandoned(parent)
        self.path = os.path.join(parent, PREFIX + run_id)
        while not self._hold():
            pass  # another worker took it for abandoned before it was locked

    def _hold(self) -> bool:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        file = os.path.join(self.path, "held")
        try:
            self._held = os.open(file, os.O_CREAT | os.O_RDWR)
            fcntl.flock(self._held, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(self._held), os.stat(file)):
                return True
            os.close(self._held)
        except FileNotFoundError:
            pass
        return False

    def snapshot(self, generation: int) -> str:
        """Where that generation's snapshot goes."""
        return os.path.join(self.path, f"snapshot_{generation}.pt")

    def keep_only(self, snapshot: str) -> None:
        """That one is whole: those before it are of no use any more."""
        for name in os.listdir(self.path):
            if name not in ("held", os.path.basename(snapshot)):
                os.remove(os.path.join(self.path, name))

    def release(self) -> None:
        """Let go; the last one to do so takes the folder away."""
        os.close(self._held)
        _remove_abandoned(os.path.dirname(self.path))


def _remove_abandoned(parent: str) -> None:
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not name.startswith(PREFIX):
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
