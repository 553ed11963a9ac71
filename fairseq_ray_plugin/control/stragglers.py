"""Which ranks the others wait for: from what mini-batches take each of them alone.

Slow is who takes much more than the median rank, window after window, for a minute: one slow
window is a long sentence, or a checkpoint that is written beside training.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping

from fairseq_ray_plugin.activity import Own

SLOWER = 1.3
"""Times the median: a rank that takes more is slow."""

NO_LONGER = 1.15
"""Times the median: a rank that was named as slow, and takes less, is so no more."""

FOR_S = 60.0
"""For how long a rank must be slow before it is named."""

LEAST_WINDOWS = 3
"""In how many windows in a row, at least: there may be one update in each."""

WINDOW_S = 10.0
"""A window's length, at least: it ends when every rank has said something in it."""


@dataclasses.dataclass(frozen=True)
class Stride:
    """What a mini-batch took a rank in a window; seconds."""

    computing: float
    data: float

    @property
    def seconds(self) -> float:
        return self.computing + self.data


@dataclasses.dataclass(frozen=True)
class Slow:
    """A rank that the others wait for."""

    stride: Stride
    median: float
    """What the median rank's mini-batch took; seconds."""

    for_s: float

    @property
    def ratio(self) -> float:
        return self.stride.seconds / self.median


class Strides:
    """The ranks of a generation, and how fast each would be alone."""

    def __init__(self) -> None:
        self.latest: Mapping[str, Stride] = {}
        """Worker -> what a mini-batch took it in the last whole window."""

        self.slow: dict[str, Slow] = {}
        """Worker -> how slow it was in the last whole window, of those that have been named."""

        self._workers: frozenset[str] = frozenset()
        self._since: dict[str, tuple[float, int]] = {}
        self._sums: dict[str, Own] = {}
        self._begin = 0.0

    def begin(self, workers: Iterable[str], now: float) -> None:
        """A generation of these starts; who was named and is in it is not named again."""
        self._workers = frozenset(workers)
        self.latest, self._since = {}, {}
        self.slow = {name: slow for name, slow in self.slow.items() if name in self._workers}
        self._begin_window(now)

    def hear(self, worker: str, own: Own) -> None:
        """What a rank says of its mini-batches since it last spoke."""
        if worker not in self._workers or own.batches <= 0:
            return
        so_far = self._sums.get(worker)
        if so_far is not None:
            own = Own(
                batches=so_far.batches + own.batches,
                computing=so_far.computing + own.computing,
                data=so_far.data + own.data,
            )
        self._sums[worker] = own

    def look(self, now: float) -> dict[str, Slow]:
        """Who is named now; a window may end with that."""
        if now - self._begin < WINDOW_S or len(self._sums) < len(self._workers) or not self._sums:
            return {}
        self.latest = {
            name: Stride(own.computing / own.batches, own.data / own.batches)
            for name, own in self._sums.items()
        }
        named = self._judge(now)
        self._begin_window(now)
        return named

    def _begin_window(self, now: float) -> None:
        self._sums, self._begin = {}, now

    def _judge(self, now: float) -> dict[str, Slow]:
        # of two ranks the faster one: it is the slower that is waited for
        median = statistics.median_low(stride.seconds for stride in self.latest.values())
        named = {}
        for name, stride in self.latest.items():
            since, windows = self._since.get(name, (self._begin, 0))
            slow = Slow(stride, median, now - since)
            if median <= 0 or slow.ratio < NO_LONGER:
                self.slow.pop(name, None)
            elif name in self.slow:
                self.slow[name] = slow
            if median <= 0 or slow.ratio <= SLOWER:
                self._since.pop(name, None)
                continue
            self._since[name] = since, windows + 1
            is_long = slow.for_s >= FOR_S and windows + 1 >= LEAST_WINDOWS
            if is_long and name not in self.slow:
                named[name] = self.slow[name] = slow
        return named
