"""A worker's preloaded server, from the worker's side (`forkserver` is what runs there)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle

from fairseq_ray_plugin.assignment import (
    Assignment,
    Exited,
    Fork,
    Forked,
    Imported,
    Kill,
    NotForked,
    Preload,
    Promote,
    Site,
    WriteCheckpoint,
)
from fairseq_ray_plugin.protocol import Ready, StandDown, Unfit
from fairseq_ray_plugin.worker import evidence

IMPORT_LIMIT_S = 100.0
"""Imports that take longer hang."""

MAKE_LIMIT_S = 1800.0
"""So does making what ranks inherit, which may read large files."""

END_S = 1.0
"""A server that takes longer to end is ended; nobody waits long for a worker that stops."""

KEEPS_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
"""Environment of ranks, unless the user's has them: glibc keeps what large temporary tensors took,
instead of asking the kernel for new pages, one fault for each, in every update. 32 MB is the most
that it takes for the second one.
"""

Message = Ready | Unfit | Imported | Forked | NotForked | Exited


def environment_of(site: Site) -> dict[str, str]:
    """What a server, and the ranks that it forks, have for an environment."""
    threads = {"OMP_NUM_THREADS": str(site.threads)}
    return {**KEEPS_MEMORY, **os.environ, **site.environment, **threads}


class Server:
    """A process that imports everything once, and forks others that have.

    Args:
        program: what Python runs; it imports what every training needs.
    """

    def __init__(self, program: Sequence[str], site: Site) -> None:
        self._connection, end = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, *program, str(end.fileno()), site.working_dir, *site.python_path],
            pass_fds=[end.fileno()],
            env=environment_of(site),
        )
        end.close()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_imported = self.is_ready = False

    def prepare(self, preload: Preload, on_message: Callable[[Message], None]) -> None:
        """It makes all ready for this training.

        Args:
            on_message: called from the event loop with what it says; `Unfit` where it has died.
        """
        self._on_message = on_message
        with contextlib.suppress(OSError):  # it has died, which is heard of below
            self._connection.send(preload)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._connection.fileno(), self._hear)

    async def hangs(self) -> Unfit | None:
        """Whether it is not ready when it should be, and what it does instead."""
        await asyncio.sleep(IMPORT_LIMIT_S)
        what, limit_s = "importing what it needs", IMPORT_LIMIT_S
        if self.has_imported:
            await asyncio.sleep(MAKE_LIMIT_S)
            what, limit_s = "making the task and the model", MAKE_LIMIT_S
        if self.is_ready:
            return None
        stacks = await evidence.stacks(self.process.pid)
        return Unfit(f"{what} takes longer than {limit_s:.0f} s:\n{stacks}")

    def fork(self, assignment: Assignment, listener: socket.socket | None) -> Connection:
        """A rank begins, and the one before it ends, but where it stands by; returns the
        connection to it.

        Args:
            listener: the socket at `assignment.master`, which goes to the rank.
        """
        link = self._fork(Fork(assignment, listener is not None))
        if listener is not None:
            send_handle(self._connection, listener.fileno(), None)
            listener.close()
        return link

    def promote(self, generation: int) -> None:
        """The rank that stands by is the one, and the one before it ends; `Forked` follows."""
        self._connection.send(Promote(generation))

    def stand_down(self, generation: int) -> None:
        """Nobody stands by any more."""
        with contextlib.suppress(OSError):  # nor does the server
            self._connection.send(StandDown(generation))

    def fork_writer(self, order: WriteCheckpoint) -> Connection:
        """A process begins that writes; returns the connection to it."""
        return self._fork(order)

    def kill_rank(self) -> None:
        """The rank ends, for it does not answer."""
        self._connection.send(Kill())

    async def close(self) -> None:
        """It ends, and all that it has forked."""
        if self._loop is not None:
            self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        if not self.is_ready:  # it imports, and does not listen
            self.process.kill()
        for _ in range(2):  # one that waits in the kernel cannot be killed, and is not waited for
            try:
                await asyncio.to_thread(self.process.wait, END_S)
                return
            except subprocess.TimeoutExpired:
                self.process.kill()

    def _fork(self, order: Fork | WriteCheckpoint) -> Connection:
        link, end = Pipe()
        with contextlib.closing(end):
            self._connection.send(order)
            send_handle(self._connection, end.fileno(), None)
        return link

    def _hear(self) -> None:
        message: Message
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            message = Unfit("its preloaded server died")
        self.has_imported = self.has_imported or isinstance(message, Imported)
        self.is_ready = self.is_ready or isinstance(message, Ready)
        self._on_message(message)
