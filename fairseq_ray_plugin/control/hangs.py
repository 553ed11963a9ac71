"""How long training may go without a sign of progress: learned from the run itself.

A rank says what it is doing and that it goes on doing it. The longest time between two such signs
so far tells how long the next one may take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fairseq_ray_plugin.activity import Activity

LOADING_LIMIT_S = 1800.0
"""A large data set on a slow file system takes its time, and nothing is known of it yet."""

UNKNOWN_LIMIT_S = 300.0
"""At least so long for what this run has not done before, such as its first validation."""

LEAST_LIMIT_S = 30.0
"""A short stall of the data's file system is no hang."""

FACTOR = 10.0
"""A hang takes this many times as long as the longest time between signs so far."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """The signs of progress of a generation's first rank."""

    doing: Activity = Activity.LOADING
    since: float = 0.0
    """When the last sign was heard, on the observation's clock."""

    at: float | None = None
    """When it was given, on the rank's own clock; None: the generation has given none."""

    longest: Mapping[Activity, float] = dataclasses.field(default_factory=dict)
    """What is done -> the longest time between signs in it, seconds, in all generations."""

    def begin(self, now: float) -> Pace:
        """A generation starts."""
        return Pace(Activity.LOADING, now, None, self.longest)

    def sign(self, now: float, doing: Activity, at: float) -> Pace:
        """There was progress; what follows is `doing`.

        Args:
            at: when, on the rank's own clock: a sign that arrives late is no long pause.
        """
        gap = now - self.since if self.at is None else at - self.at
        longest = max(self.longest.get(self.doing, 0.0), gap)
        return Pace(doing, now, at, {**self.longest, self.doing: longest})

    def limit(self, given: float | None, num_hangs: int = 0) -> float:
        """Seconds after the last sign from which training counts as hung.

        Args:
            given: --ray-hang-timeout; it holds for all but loading, which gets no less.
            num_hangs: hangs since the last update; each doubles what was learned too low.
        """
        if self.doing is Activity.LOADING:
            limit = max(
                LOADING_LIMIT_S, given or 0.0, FACTOR * self.longest.get(Activity.LOADING, 0.0)
            )
        elif given is not None:
            return given
        elif self.doing in self.longest:
            limit = max(LEAST_LIMIT_S, FACTOR * self.longest[self.doing])
        else:
            limit = max(UNKNOWN_LIMIT_S, FACTOR * max(self.longest.values(), default=0.0))
        return limit * 2.0**num_hangs
