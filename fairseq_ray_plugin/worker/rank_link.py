"""The worker's end of a rank, which may not be the one that trains yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from fairseq_ray_plugin.assignment import Backlog, Go, Write
from fairseq_ray_plugin.protocol import Hold


class RankLink:
    """A connection to a rank's process, read on the running event loop.

    Args:
        hear: called with this when there is something to be read, or its end.
    """

    def __init__(
        self,
        generation: int,
        master: tuple[str, int],
        connection: Connection,
        hear: Callable[[RankLink], None],
    ) -> None:
        self.generation, self.master = generation, master
        self.pid = 0
        """Of its process; 0: not forked yet."""

        self.go: Go | None = None
        """What it is to be told as soon as the rank before it is gone."""

        self.has_ended = False

        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), hear, self)

    def send(self, order: Hold | Write | Backlog | Go) -> None:
        """It gets the order, if it still lives: how it has ended is the server's to say."""
        with contextlib.suppress(OSError):
            self._connection.send(order)

    def read(self) -> Iterator[Any]:
        """What it has said; raises EOFError or OSError at its end."""
        while not self._connection.closed and self._connection.poll():
            yield self._connection.recv()

    def close(self) -> None:
        if not self._connection.closed:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()
