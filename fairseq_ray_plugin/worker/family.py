"""A rank and all that it has started end together, before the next rank goes on.

A rank leads a process group, and the server that forked it adopts what outlives its parent
(PR_SET_CHILD_SUBREAPER): a loader process that ignores SIGTERM, or a helper in a session of its
own, would otherwise keep the GPU's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait

import psutil

PR_SET_CHILD_SUBREAPER = 36

EXITING = 0x4
"""A thread with this flag (the kernel's PF_EXITING) runs no more code: it is being taken down."""

LOOK_S = 0.01
"""How often those that were killed are looked at, where nothing is heard of them."""


class Family:
    """The processes that descend from this one: a rank, what it has started, and writers.

    Args:
        woken: a pipe's end that can be read after a child has ended (see `signal.set_wakeup_fd`).
    """

    def __init__(self, woken: int) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._woken = woken
        self.rank = 0
        """Its pid; 0: there is none, or it is being ended."""

        self.standby = 0
        """Pid of the rank of a generation to come; 0: there is none."""

        self._exits: list[tuple[int, int]] = []
        self._ended: set[int] = set()
        """Ranks that have been killed, and are not gone yet."""

        self._writers: set[int] = set()
        self._others = {child.pid for child in psutil.Process().children()}
        """What was imported has started these; no rank has."""

    def add_rank(self, pid: int, stands_by: bool) -> None:
        if stands_by:
            self.standby = pid
        else:
            self.rank = pid

    def add_writer(self, pid: int) -> None:
        """It outlives ranks."""
        self._writers.add(pid)

    def reap(self) -> None:
        """Those that have ended are gone; `take_exits` has the ranks among them.

        All that is in a rank's group is killed with it, while nobody else can have its number.
        """
        for rank in (self.rank, self.standby):
            if rank and _has_ended(rank):
                end_group(rank)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = 0, 0
            if pid == 0:
                return
            if pid in (self.rank, self.standby):
                self._exits.append((pid, status))
            if pid == self.rank:
                self.rank = 0
            elif pid == self.standby:
                self.standby = 0
            self._writers.discard(pid)
            self._ended.discard(pid)

    def take_exits(self) -> list[tuple[int, int]]:
        """Pid and wait status of the ranks that have ended since this was asked, unasked."""
        exits, self._exits = self._exits, []
        return exits

    def end_rank(self) -> int:
        """Kill the rank and its group; returns its pid, 0 where there is none."""
        pid, self.rank = self.rank, 0
        self._end(pid)
        return pid

    def end_standby(self) -> None:
        """The same with the one that stands by."""
        pid, self.standby = self.standby, 0
        self._end(pid)

    def _end(self, pid: int) -> None:
        if pid:
            self._ended.add(pid)
            end_group(pid)

    def promote(self) -> int:
        """The one that stood by is the rank; returns its pid, 0 where it is no more."""
        self.rank, self.standby = self.standby, 0
        return self.rank

    def wait(self, limit_s: float, or_exiting: bool = False) -> list[int]:
        """Kill what ranks that have ended left behind; returns who is alive after `limit_s`.

        Args:
            or_exiting: to give back gigabytes takes a rank long: it need not be over where it
                runs no more.
        """
        end = time.monotonic() + limit_s
        while True:
            self.reap()
            left = self._left()
            if or_exiting:
                left = [pid for pid in left if pid not in self._ended or not _is_exiting(pid)]
            for pid in left:
                _kill(pid)
            if not left or time.monotonic() >= end:
                return left
            if wait([self._woken], min(LOOK_S, max(0.0, end - time.monotonic()))):
                os.read(self._woken, 512)

    def _left(self) -> list[int]:
        """Who descends from neither a rank that lives, nor a writer, nor what is older.

        What a rank has started is its own until it has given back its memory, and then adopted.
        """
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # the usual case, in no time
            return []
        spared = self._writers | self._others | {self.rank, self.standby}
        parents = _descendants()
        left = [pid for pid in parents if spared.isdisjoint(_line(pid, parents))]
        return [pid for pid in left if parents[pid] == os.getpid() or not _is_exiting(pid)]


def lead_group() -> None:
    """What this process starts from now on is of its group."""
    os.setpgid(0, 0)


def end_group(rank: int) -> None:
    """Kill a rank, if there is one, and all in its group; it may not lead one yet."""
    for kill in (os.kill, os.killpg) if rank else ():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(rank, signal.SIGKILL)


def _kill(pid: int) -> None:
    """And its group, if that is not this process's: it may have left the rank's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
        group = os.getpgid(pid)
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)


def _descendants() -> dict[int, int]:
    """All that descend from this process, each with its parent."""
    parents = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            parents[process.pid] = process.ppid()
    return parents


def _line(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """A process, and those that it descends from."""
    while pid in parents:
        yield pid
        pid = parents[pid]


def _has_ended(child: int) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, options) is not None


def _is_exiting(pid: int) -> bool:
    """Whether none of its threads runs any more code."""
    return all(flags & EXITING for _, _, flags in _threads(pid))


def _threads(pid: int) -> list[tuple[str, str, int]]:
    """Of each thread: its id, its state (a letter), its flags; nothing elsewhere than on Linux."""
    folder = f"/proc/{pid}/task"
    threads = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(folder):
            with open(os.path.join(folder, thread, "stat"), errors="replace") as file:
                state, *fields = file.read().rpartition(")")[2].split()
            threads.append((thread, state, int(fields[5])))
    return threads


def describe(pid: int) -> str:
    """A process that outlives SIGKILL, for people: who it is, and what it waits for."""
    try:
        name = psutil.Process(pid).name()
    except psutil.Error:
        name = "unknown"
    for thread, state, _ in _threads(pid):
        if state == "D":
            return f"process {pid} ({name}) outlives SIGKILL: it waits in {_waits_in(pid, thread)}"
    return f"process {pid} ({name}) outlives SIGKILL"


def _waits_in(pid: int, thread: str) -> str:
    where = ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/wchan") as file:
        where = file.read().strip("\0\n")
    return f"the kernel's {where}" if where not in ("", "0") else "the kernel"
