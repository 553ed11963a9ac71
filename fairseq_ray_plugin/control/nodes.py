"""Which nodes and GPUs are of use: one that fails while others do not is left out.

Longer each time. Of a GPU the worker stays, and holds it: so nobody else gets it from Ray.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

HOUR_S = 3600.0

SUSPECT_AFTER = 3
"""Failures of a node within an hour before it is left out; twice as many if another has one."""

GPU_SUSPECT_AFTER = 2
"""The same of a GPU, and failures that a broken GPU may be the cause of."""

FIRST_COOL_DOWN_S = 60.0
"""How long a suspect is left out; twice as long each further time, up to an hour."""


@dataclasses.dataclass(frozen=True)
class NodeRecord:
    """What one node, or one GPU, has done to training."""

    failures: tuple[float, ...] = ()
    """When, in seconds; of the last hour."""

    unfit: tuple[str, ...] = ()
    """Why workers did not start there, since one last did."""

    place_after: float = 0.0
    """No worker is placed there before that."""

    num_cool_downs: int = 0
    use_after: float = 0.0
    """No worker is placed or used there before that."""

    def failed(self, now: float) -> NodeRecord:
        """A failure happened there."""
        return dataclasses.replace(self, failures=(*self._recent(now), now))

    def not_started(self, reason: str, now: float) -> NodeRecord:
        """A worker did not start there: wait longer each time before the next one is tried."""
        unfit = (*self.unfit, reason)
        pause = min(2.0 ** (len(unfit) - 1), HOUR_S)
        return dataclasses.replace(self, unfit=unfit, place_after=now + pause)

    def not_placed(self, now: float) -> NodeRecord:
        """The cluster did not start a worker there: it has no room in truth."""
        return dataclasses.replace(self, place_after=now + FIRST_COOL_DOWN_S)

    def started(self) -> NodeRecord:
        """A worker did start there."""
        return dataclasses.replace(self, unfit=()) if self.unfit else self

    def forgiven(self) -> NodeRecord:
        """What failed there was the fault of something else, which is left out."""
        return dataclasses.replace(self, failures=())

    def dead(self) -> NodeRecord:
        """It never comes back: a machine that does has another name."""
        return dataclasses.replace(self, unfit=(), place_after=math.inf)

    def left_out(self, now: float) -> NodeRecord:
        """It is of no use for a while."""
        pause = min(FIRST_COOL_DOWN_S * 2.0**self.num_cool_downs, HOUR_S)
        return dataclasses.replace(
            self, failures=(), num_cool_downs=self.num_cool_downs + 1, use_after=now + pause
        )

    def is_usable(self, now: float) -> bool:
        """Whether a worker there may run a rank."""
        return now >= self.use_after

    def has_place(self, now: float) -> bool:
        """Whether a worker may be placed there."""
        return self.is_usable(now) and now >= self.place_after

    def _recent(self, now: float) -> tuple[float, ...]:
        return tuple(time for time in self.failures if now - time < HOUR_S)

    def num_failures(self, now: float) -> int:
        """Within the last hour."""
        return len(self._recent(now))


def is_suspect(
    records: Mapping[str, NodeRecord], one: str, now: float, after: int = SUSPECT_AFTER
) -> bool:
    """Whether `one` fails again and again while the others do not."""
    count = records[one].num_failures(now) if one in records else 0
    if count < after:
        return False
    others = (record.num_failures(now) for name, record in records.items() if name != one)
    return count >= after * (1 + max(others, default=0))
