"""What a rank tells of itself while it trains."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from fairseq_ray_plugin.activity import Activity, Logged, Own, Tally
from fairseq_ray_plugin.assignment import Due, Holding
from fairseq_ray_plugin.protocol import Advanced, Doing, RankMessage
from fairseq_ray_plugin.training.steps import Steps

MOST_SIGNS = 100
"""So many a second come from all ranks together at the most: the loop hears them one by one."""


class Link:
    """A rank's end of the connection to its worker, for more than one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: RankMessage | Holding | Due) -> None:
        with self._lock:
            self._connection.send(message)


_KINDS = ("loading", "training", "data", "validating", "saving")

_KINDS_OF = {
    Activity.LOADING: "data",
    Activity.TRAINING: "data",  # until there is a batch
    Activity.VALIDATING: "validating",
    Activity.SAVING: "saving",
}


class Progress:
    """Tells what this rank is doing, and that it gets on: no more than once a second.

    All ranks tell of their first update, and then what mini-batches take them alone. All else is
    rank 0's to tell: where one rank does not get on, none does.

    Args:
        take_own: mini-batches since it was last called, and the seconds of forward and backward.
    """

    def __init__(
        self,
        link: Link,
        rank: int,
        steps: Steps,
        take_own: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
        world_size: int = 1,
    ) -> None:
        self._link, self._rank = link, rank
        self._steps, self._take_own = steps, take_own
        self._own_s = max(1.0, world_size / MOST_SIGNS)
        self._own_told, self._data_told = -math.inf, 0.0
        self._has_advanced = False
        self._doing = Activity.LOADING
        self._told = -math.inf
        self._spent = dict.fromkeys(_KINDS, 0.0)
        self._turned = "loading", time.monotonic()
        self._logged: Logged | None = None

    def turn_to(self, what: str) -> None:
        """From now on time goes to that: the name of a field of `Tally`."""
        now = time.monotonic()
        before, since = self._turned
        self._spent[before] += now - since
        self._turned = what, now

    def logged(self, logged: Logged) -> None:
        """Training has said something of itself."""
        self._logged = logged

    def tally(self) -> Tally:
        """What time has gone to so far; for any thread, at any time."""
        spent, (_, since) = dict(self._spent), self._turned
        in_flight = max(0.0, time.monotonic() - since)
        return Tally(**spent, in_flight=in_flight, logged=self._logged)

    def advanced(self, update: int) -> None:
        """An update has been completed; training goes on."""
        self.turn_to("training")
        now = time.monotonic()
        own = self._own(now)
        if not self._has_advanced or self._is_due(Activity.TRAINING, now):
            steps = () if self._has_advanced else self._steps.so_far()
            self._has_advanced = True
            self._doing, self._told = Activity.TRAINING, now
            self._link.send(Advanced(update, now, steps, self.tally(), own))
        elif own is not None:
            self._link.send(Advanced(update, now, own=own))

    def _own(self, now: float) -> Own | None:
        """What is to be told of it now; a generation's first update takes longer, and is not."""
        if now - self._own_told < self._own_s:
            return None
        is_first, self._own_told = not self._has_advanced, now
        batches, seconds = self._take_own()
        data, self._data_told = self._spent["data"] - self._data_told, self._spent["data"]
        if is_first or not batches:
            return None
        return Own(batches=batches, computing=seconds, data=data)

    def doing(self, activity: Activity) -> None:
        """What comes next, or still goes on."""
        kind = _KINDS_OF[activity]
        if not self._has_advanced and kind == "data":
            kind = "loading"
        if kind != self._turned[0]:
            self.turn_to(kind)
        now = time.monotonic()
        if self._is_due(activity, now):
            self._doing, self._told = activity, now
            self._link.send(Doing(activity, now))

    def _is_due(self, activity: Activity, now: float) -> bool:
        return self._rank == 0 and (activity is not self._doing or now - self._told >= 1)
