"""Simulated time: a heap of what is to come."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Clock:
    """Seconds since the beginning, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._to_come: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def at(self, when: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._to_come, (max(when, self.now), next(self._count), act))

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self.at(self.now + seconds, act)

    @property
    def next_at(self) -> float:
        return self._to_come[0][0] if self._to_come else math.inf

    def act(self) -> bool:
        """All that is due happens; returns whether something was."""
        is_due = self.next_at <= self.now
        while self.next_at <= self.now:
            heapq.heappop(self._to_come)[2]()
        return is_due
