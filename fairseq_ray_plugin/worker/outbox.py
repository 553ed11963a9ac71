"""What a worker says, until it is known to have been heard."""

from __future__ import annotations

import asyncio
import contextlib

from fairseq_ray_plugin.protocol import (
    Advanced,
    Copy,
    Ended,
    Finished,
    FromRank,
    Held,
    InMemory,
    Raised,
    Refusal,
    Saved,
    Snapshot,
    WorkerMessage,
)


class Outbox:
    """Messages in order, each until it is known to have arrived; and what they come to.

    Args:
        node: on which snapshots are.
    """

    def __init__(self, node: str = "") -> None:
        self._node = node
        self._messages: list[WorkerMessage] = []
        self.num_forgotten = 0
        """Messages that are known to have arrived."""

        self.update = 0
        """The last one that a rank has told of."""

        self.rested = 0
        """The generation of the last rank that trains no more."""

        self.snapshots: dict[str, Copy] = {}
        """By path; some may be gone."""

        self._has_some = asyncio.Event()

    def put(self, message: WorkerMessage) -> None:
        self._messages.append(message)
        self._has_some.set()
        if isinstance(message, FromRank):
            self._remember(message)

    def _remember(self, message: FromRank) -> None:
        match message.says:
            case Held() | Raised() | Finished() | Refusal() | Ended():
                self.rested = message.generation
            case Snapshot(update, path) | Saved(update, path):
                self.snapshots[path] = Copy(update, InMemory(self._node, path))
        says = message.says
        if isinstance(says, Advanced | Held | Raised | Finished):
            self.update = max(self.update, says.update or 0)

    def forget(self, num_heard: int) -> None:
        """So many have arrived, since the first."""
        num_new = max(0, num_heard - self.num_forgotten)  # a question may come late
        del self._messages[:num_new]
        self.num_forgotten += num_new
        if not self._messages:
            self._has_some.clear()

    async def get(self, limit_s: float) -> list[WorkerMessage]:
        """All that may not have arrived, as soon as there is some; nothing after `limit_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._has_some.wait(), limit_s)
        return list(self._messages)
