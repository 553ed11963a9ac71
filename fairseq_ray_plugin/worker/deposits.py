"""Checkpoints that are due, from the rank's side: put by in memory, and never far behind.

What becomes of them is the worker's business (`writing`).
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import threading
import time
from collections.abc import Callable, Iterable

import psutil

from fairseq_ray_plugin.assignment import NOTHING, Backlog, Due
from fairseq_ray_plugin.protocol import Delayed
from fairseq_ray_plugin.worker.progress import Link
from fairseq_ray_plugin.worker.snapshots import Snapshots

DUE = ".due"
"""The end of a snapshot's other name, by which the worker has it."""

_NAME = re.compile(r"update_(\d+)_(\d+)_")
"""Of a snapshot: its update, and the process that has it."""

MOST_DUE = 2
"""Where so many are not written yet, training waits for one of them."""

LAST_WAIT_S = 900.0
"""The end of training waits so long for a disk that takes nothing."""

SIGN_S = 1.0
"""How often who waits shows that it does."""


def left_behind(folders: Iterable[str]) -> list[Due]:
    """What was due to be written by workers that are no more; from now on this process has it."""
    left = []
    for path in (p for folder in folders for p in glob.glob(f"{glob.escape(folder)}/*{DUE}")):
        folder, name = os.path.split(path)
        if (found := _NAME.match(name)) and not psutil.pid_exists(int(found[2])):
            ours = os.path.join(folder, f"update_{found[1]}_{os.getpid()}_{name}")
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                os.rename(path, ours)
                left.append(Due(0, 0, int(found[1]), ours))
    return left


class Deposits:
    """States that this rank has put by to be checkpoints.

    Args:
        snapshots: puts a state by in the node's memory.
        still_saving: called from time to time while training waits.
        is_only_way: where there is no room, the checkpoint is given up.
    """

    def __init__(
        self,
        link: Link,
        generation: int,
        snapshots: Snapshots,
        still_saving: Callable[[], None],
        is_only_way: bool = False,
    ) -> None:
        self._link, self._generation, self._is_only_way = link, generation, is_only_way
        self._snapshots, self._still_saving = snapshots, still_saving
        self._num = 0
        self._backlog = NOTHING
        self._changed = threading.Condition()

    # called by the training thread

    def add(self, update: int, write_to: Callable[[str], object]) -> bool:
        """A checkpoint is due: its state is in memory when this returns, if there is room.

        Returns whether nobody else need write it.
        """
        self._wait(MOST_DUE - 1, 0)
        # the driver says when the snapshot goes, the worker when what is due does
        path = self._snapshots.put_by(update, write_to, DUE)
        if path is None:
            if self._is_only_way:
                reason = "there is no room for it in the node's memory, nor on its disk"
                self._link.send(Delayed(update, reason, given_up=True))
            return self._is_only_way
        self._num += 1
        self._link.send(Due(self._num, self._generation, update, path + DUE))
        return True

    def wait_until_written(self) -> None:
        """Training has ended, and its checkpoints are files, or cannot be."""
        self._wait(0, LAST_WAIT_S)

    def _wait(self, most: int, failing_s: float) -> None:
        """Until no more than `most` are due, or the disk has taken nothing for so many seconds."""
        end = time.monotonic() + failing_s
        with self._changed:
            while self._num_due() > most:
                if not self._backlog.failing:  # slow is not stuck
                    end = time.monotonic() + failing_s
                elif time.monotonic() >= end:
                    return
                self._still_saving()
                self._changed.wait(SIGN_S)

    def _num_due(self) -> int:
        return self._backlog.num_due + self._num - self._backlog.num_heard

    # called by the thread that answers

    def hear(self, backlog: Backlog) -> None:
        """The worker says what it has to write."""
        with self._changed:
            self._backlog = backlog
            self._changed.notify()
