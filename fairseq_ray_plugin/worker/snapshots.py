"""Where and how often a rank puts its state by in the node's memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from fairseq_ray_plugin.checkpoints.memory import RAW
from fairseq_ray_plugin.protocol import NoSnapshot, Snapshot
from fairseq_ray_plugin.worker.progress import Link

logger = logging.getLogger(__name__)

FIRST_SNAPSHOT_S = 10.0
"""From a generation's first update to its first snapshot, where the user did not say how often: not
from its start, which takes longer than that where models are large, and has just read the state."""

SNAPSHOT_SHARE = 250
"""Then each comes so many times later than the last one took: two nodes' cost 0.8% in all."""


class Snapshots:
    """Puts the state by from time to time, for when every process dies.

    Args:
        put_by: writes the state to a path.
        folders: where it may go, the best first.
        every: updates between snapshots, 0 for none; None: so that they cost little.
    """

    def __init__(
        self,
        link: Link,
        put_by: Callable[[str], object],
        folders: tuple[str, ...],
        every: int | None,
    ) -> None:
        self._link, self._put_by, self._folders, self.every = link, put_by, folders, every
        self._pid, self._num_written = os.getpid(), 0
        self._due: float | None = None

    def at_boundary(self, update: int) -> None:
        """Save the state now, if it is time; training waits."""
        begin = time.monotonic()
        if self.every is None:
            if self._due is None:
                self._due = begin + FIRST_SNAPSHOT_S
            if begin < self._due:
                return
        elif self.every == 0 or update % self.every:
            return
        self.put_by(update, self._put_by)

    def put_by(
        self, update: int, write_to: Callable[[str], object], other_name: str = ""
    ) -> str | None:
        """Write the state of this boundary, and say so; returns where, None: there is no room.

        Args:
            other_name: the end of another name for the file, which the driver does not know of.
        """
        begin = time.monotonic()
        self._num_written += 1
        path: str | None = None
        try:
            name = f"update_{update}_{self._pid}_{self._num_written}{RAW}"
            path = write(write_to, self._folders, name)
            if other_name:
                os.link(path, path + other_name)
        except Exception as error:  # a full disk is no reason to end training
            self._link.send(NoSnapshot(f"no snapshot after update {update}: {error!r}"))
        else:
            self._link.send(Snapshot(update, path))
        self._due = time.monotonic() + (time.monotonic() - begin) * SNAPSHOT_SHARE
        return path


def write(save: Callable[[str], object], folders: tuple[str, ...], name: str) -> str:
    """A file is in the first of `folders` that has room for it; returns its path.

    Raises:
        Exception: none has; what writing to the last one raised.
    """
    for folder in folders[:-1]:
        try:
            path = os.path.join(folder, name)
            save(path)
            return path
        except (OSError, RuntimeError) as error:  # torch's writer says neither which nor why
            logger.warning("no room for a snapshot in %s (%s): to disk", folder, error)
    path = os.path.join(folders[-1], name)
    save(path)
    return path
