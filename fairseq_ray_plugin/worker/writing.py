"""Checkpoints that are due: states in memory that become files, one after the other.

Each is written by a process of its own, forked from the preloaded server: training goes on, and a
state whose rank has died is written all the same. What cannot be written now is kept, and tried
again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

import psutil

from fairseq_ray_plugin.assignment import NOTHING, Backlog, Due, WriteCheckpoint, Written
from fairseq_ray_plugin.protocol import (
    Checkpointed,
    Copy,
    Delayed,
    InMemory,
    RankMessage,
    Saved,
    Unsaved,
)

MOST_DUE = 2
"""So many are kept; where another one comes, the older of those that wait is given up."""

RETRY_S = 5.0
"""When it is tried again to write what there was no room for."""

MOST_KILLED = 2
"""So many writers may be killed before the next has to wait."""

STALL_S = 120.0
"""Whoever writes nothing for so long has a disk, or a store, that stands still."""

LOOK_S = 10.0
"""How often it is looked at."""


class Writing:
    """What a worker has to write.

    Args:
        begin: starts a process that writes, and gives the connection to it.
        say: tells the driver, for a generation.
        tell: tells the rank.
    """

    def __init__(
        self,
        begin: Callable[[WriteCheckpoint], Connection],
        say: Callable[[int, RankMessage], None],
        tell: Callable[[Backlog], None],
    ) -> None:
        self._begin, self._say, self._tell = begin, say, tell
        self._due: collections.deque[Due] = collections.deque()
        self._publish: tuple[int, Copy, str, bool] | None = None
        self._link: Connection | None = None
        self._watch: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._num_heard, self._told = 0, NOTHING
        self._num_killed, self._failing = 0, ""
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, due: Due) -> None:
        """A state is in memory that is to be a checkpoint."""
        self._num_heard = due.number
        self._due.append(due)
        if len(self._due) > MOST_DUE:
            given_up = self._due[1]
            del self._due[1]
            _remove(given_up.snapshot)
            reason = self._failing or "the save dir is slower than checkpoints come"
            self._say(due.generation, Delayed(given_up.update, reason, given_up=True))
        elif self._failing:
            self._say(due.generation, Delayed(due.update, self._failing))
        self._go_on()

    def publish(
        self, generation: int, snapshot: Copy, target: str, and_remove: bool = False
    ) -> None:
        """A snapshot becomes the run's last checkpoint; `Saved` or `Unsaved` follows.

        Args:
            and_remove: the driver does not know of the snapshot.
        """
        self._publish = (generation, snapshot, target, and_remove)
        if self._retry is not None:  # now, and not when it is its turn again
            self._retry.cancel()
            self._retry = None
        self._go_on()

    def new_rank(self) -> None:
        """Another process counts what it brings from 1, and knows of nothing."""
        self._num_heard, self._told = 0, NOTHING
        self._tell_rank()

    async def idle(self, limit_s: float) -> None:
        """Nothing is being written, and nothing waits that could be; or the time is over."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), limit_s)

    def close(self) -> None:
        """Whoever writes ends with the server."""
        if self._retry is not None:
            self._retry.cancel()
        self._drop_link()

    def _go_on(self) -> None:
        self._tell_rank()
        if self._link is not None or self._retry is not None:
            return
        # the end of the run is not kept waiting by what could not be written before
        order = None
        if self._publish is not None and (self._failing or not self._due):
            _, snapshot, target, _ = self._publish
            assert isinstance(snapshot.place, InMemory)
            order = WriteCheckpoint(snapshot.place.path, target)
        elif self._due:
            order = WriteCheckpoint(self._due[0].snapshot, None)
        if order is None:
            self._idle.set()
            return
        self._idle.clear()
        try:
            self._link = self._begin(order)
        except OSError as error:  # the server is no more, and its worker neither, soon
            self._done(order, f"it cannot be written: {error!r}")
            return
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._hear, order)

    def _hear(self, order: WriteCheckpoint) -> None:
        assert self._link is not None
        try:
            result = self._link.recv()
        except (EOFError, OSError):
            result = "the process that wrote it was killed"
            self._num_killed += 1
        if isinstance(result, int):
            self._watch = asyncio.create_task(self._watch_for_stall(order, result))
            return
        self._drop_link()
        self._done(order, result)

    async def _watch_for_stall(self, order: WriteCheckpoint, pid: int) -> None:
        """A disk may stand still for ever; looking at it would, too."""
        with contextlib.suppress(psutil.Error):
            process, written, since = psutil.Process(pid), -1, 0.0
            while since < STALL_S:
                await asyncio.sleep(LOOK_S)
                counted = process.io_counters()
                now = counted.write_chars + counted.read_chars  # of what is sent: read
                written, since = now, since + LOOK_S if now == written else 0.0
            if order.target is None:
                self._fail(f"the save dir has taken nothing for {STALL_S:.0f} s")
                self._tell_rank()

    def _done(self, order: WriteCheckpoint, result: Written | str) -> None:
        if order.target is not None:
            self._published(result)
        elif isinstance(result, Written):
            self._num_killed = 0
            due = self._due.popleft()
            _remove(due.snapshot)
            self._failing = ""
            if result.path is not None:
                says = Checkpointed(due.update, result.path, result.seconds, result.num_bytes)
                self._say(due.generation, says)
        elif not 0 < self._num_killed <= MOST_KILLED:  # or another may fare better at once
            self._fail(result)
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        self._go_on()

    def _fail(self, reason: str) -> None:
        if self._failing != reason:
            self._failing = reason
            self._say(self._due[0].generation, Delayed(self._due[0].update, reason))
        self._idle.set()

    def _published(self, result: Written | str) -> None:
        assert self._publish is not None
        (generation, snapshot, target, and_remove), self._publish = self._publish, None
        if and_remove and isinstance(snapshot.place, InMemory):
            _remove(snapshot.place.path)
        self._num_killed = 0
        if isinstance(result, Written):
            self._say(generation, Saved(snapshot.update, target))
        else:
            self._say(generation, Unsaved(f"{target}: {result}"))

    def _try_again(self) -> None:
        self._retry = None
        self._go_on()

    def _tell_rank(self) -> None:
        backlog = Backlog(self._num_heard, len(self._due), bool(self._failing))
        if backlog != self._told:
            self._told = backlog
            self._tell(backlog)

    def _drop_link(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()
            self._link = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
