"""Which nodes are there: one worker of each says so twice a second."""

from __future__ import annotations

from collections.abc import Callable, Collection

LATE_S = 3.0
"""An answer that took longer was under way in a silence, and does not end it."""


class Heartbeats:
    """When each node was last heard of. One worker of each is asked, so that the driver keeps up.

    Args:
        ask: asks a worker, which answers in half a second.
    """

    def __init__(self, ask: Callable[[str], None]) -> None:
        self._ask = ask
        self.heard: dict[str, float] = {}
        """Node -> when, on the driver's clock; nothing is known of others."""

        self._voices: dict[str, str] = {}
        """Node -> the worker by which it is heard."""

        self._asked: dict[str, float] = {}

    def begin(self, worker: str, node: str, now: float) -> None:
        """A worker can be asked."""
        if node not in self._voices:
            self._voices[node] = worker
            self.ask(worker, now)

    def ask(self, worker: str, now: float) -> None:
        """It answers, or cannot be reached."""
        self._asked[worker] = now
        self._ask(worker)

    def answered(self, worker: str, node: str, now: float) -> None:
        """It has, and is asked again."""
        # where a network was cut, what had been sent before arrives before anything new gets
        # through: the way there may take seconds longer to come back than the way here
        if now - self._asked[worker] <= LATE_S:
            self.heard[node] = now
        self.ask(worker, now)

    def drop(
        self,
        worker: str,
        node: str,
        others: Collection[str],
        not_ready: Collection[str],
        now: float,
    ) -> None:
        """A worker is no more; another on its node says from now on that it is there.

        Args:
            others: workers there.
            not_ready: workers that may take their time to answer.
        """
        self._asked.pop(worker, None)
        if self._voices.get(node) != worker:
            return
        del self._voices[node]
        first = min(others, key=not_ready.__contains__, default=None)
        if first is None or first in not_ready:
            self.heard.pop(node, None)  # until it is heard, nothing is known
        if first is not None:
            self.begin(first, node, now)
