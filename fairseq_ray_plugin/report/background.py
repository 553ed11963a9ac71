"""Writing that may fail or never return, where it stops nobody."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Calls `write` with each item, in order, in a thread of its own.

    Args:
        what: is written, and where, for people.
    """

    def __init__(self, write: Callable[[Item], None], what: str) -> None:
        self._write, self._what = write, what
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._has_complained = False
        # a daemon: it must not keep the process that has given up waiting for it
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """The item will be written."""
        self._items.put(item)

    def close(self, limit_s: float = 2.0) -> None:
        """All items are written, or there is a warning."""
        self._items.put(None)
        self._thread.join(limit_s)
        if self._thread.is_alive():
            logger.warning("%s could not be written in time", self._what)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._write(item)
            except Exception as error:
                if not self._has_complained:  # once: a full disk stays full
                    logger.warning("%s: lines are missing, %r", self._what, error)
                self._has_complained = True
