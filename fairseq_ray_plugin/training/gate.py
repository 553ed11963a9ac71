"""Up to which point a rank is made before its generation begins, and what it is told then.

A rank that stands by has its task and its model and, on CPUs, its trainer and its data, and has met
the others. On a GPU it waits before that: the rank that still trains there has its memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from fairseq_ray_plugin.training.steps import Steps


class Gate:
    """Closed for a rank that stands by, until it is told what to go on from.

    Args:
        restore: what a rank goes on from that does not; None: what the user's options say.
        on_waiting: called once, where it is closed.
        is_planned: nobody waits for a rank that stands by.
    """

    def __init__(
        self,
        restore: str | None,
        stands_by: bool,
        steps: Steps,
        on_waiting: Callable[[], object],
        is_planned: bool = False,
    ) -> None:
        self.is_planned = is_planned
        self._restore, self._steps, self._on_waiting = restore, steps, on_waiting
        self._is_open = threading.Event()
        self.stands_by = stands_by
        """Or stood by, before it was told to go."""

        if not stands_by:
            self._is_open.set()

    @property
    def is_first_start(self) -> bool:
        """Nothing is gone on from but what the user's own options say."""
        return self._restore is None and not self.stands_by

    @property
    def is_closed(self) -> bool:
        """There is time to make more ready."""
        return not self._is_open.is_set()

    def open(self, restore: str | None) -> None:
        """It goes on from this; called in another thread."""
        self._restore = restore
        self._steps.begin()  # a recovery's are those since
        self._is_open.set()

    def wait(self) -> str | None:
        """What to go on from, as soon as that is known."""
        if self.is_closed:
            self._on_waiting()
            self._is_open.wait()
        return self._restore

    def wait_quietly(self) -> None:
        """Returns when it is open."""
        self._is_open.wait()
