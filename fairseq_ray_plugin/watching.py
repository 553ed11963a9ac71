"""Who watches a run is shown it once a second: a terminal, what collects metrics."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fairseq_ray_plugin.accounting.beat import Beat
from fairseq_ray_plugin.accounting.live import Follower, Live
from fairseq_ray_plugin.page import words
from fairseq_ray_plugin.report import status_line

logger = logging.getLogger(__name__)

EVERY_S = 1.0

Watcher = Callable[[Live], None]


class Watch:
    """Those who watch a run; one that fails is left out, and the run goes on."""

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._watchers = list(watchers)
        self._follower = Follower()
        self._shown: float | None = None

    def hear(self, line: Mapping[str, Any]) -> None:
        """Something has been written down."""
        if self._watchers:
            self._follower.hear(line)

    def look(self, beat: Callable[[], Beat], now: float) -> None:
        """It is shown, if a second has passed since it last was."""
        if not self._watchers or (self._shown is not None and now - self._shown < EVERY_S):
            return
        self._shown = now
        live = self._follower.now(beat(), time.time())
        for watcher in tuple(self._watchers):
            try:
                watcher(live)
            except Exception as error:
                self._watchers.remove(watcher)
                logger.warning("this run is not shown there any more", exc_info=error)


@contextlib.contextmanager
def on_this_terminal() -> Iterator[list[Watcher]]:
    """Who shows a run in a line at the bottom of this process's terminal, if it has one."""
    line = status_line.on_this_terminal()
    if line is None:
        yield []
        return
    with contextlib.closing(line):
        yield [lambda live: line.show(words.status(live, time.time()))]
