"""What a rank does up to the end of its first update, and how long each step of it takes."""

from __future__ import annotations

import time


class Steps:
    """A clock that is read at the end of each step; it begins when it is made."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """What was before is forgotten."""
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """All since the last step's end was this one, or another piece of it."""
        now = time.monotonic()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def so_far(self) -> tuple[tuple[str, float], ...]:
        """Each step, in order, with its seconds."""
        return tuple(self._seconds.items())
