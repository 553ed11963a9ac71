"""What a worker says, until it is known to have been heard."""

from __future__ import annotations

import asyncio
import contextlib

from fairseq_ray_plugin.protocol import WorkerMessage


class Outbox:
    """Messages in order, each until it is known to have arrived."""

    def __init__(self) -> None:
        self._messages: list[WorkerMessage] = []
        self._num_forgotten = 0
        self._has_some = asyncio.Event()

    def put(self, message: WorkerMessage) -> None:
        self._messages.append(message)
        self._has_some.set()

    def forget(self, num_heard: int) -> None:
        """So many have arrived, since the first."""
        num_new = max(0, num_heard - self._num_forgotten)  # a question may come late
        del self._messages[:num_new]
        self._num_forgotten += num_new
        if not self._messages:
            self._has_some.clear()

    async def get(self, limit_s: float) -> list[WorkerMessage]:
        """All that may not have arrived, as soon as there is some; nothing after `limit_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_some.wait(), limit_s)
        return list(self._messages)
