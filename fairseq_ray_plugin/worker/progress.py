"""What a rank tells of itself while it trains."""

from __future__ import annotations

import math
import threading
import time
from multiprocessing.connection import Connection

from fairseq_ray_plugin.assignment import Due, Holding
from fairseq_ray_plugin.protocol import Activity, Advanced, Doing, RankMessage
from fairseq_ray_plugin.training.steps import Steps


class Link:
    """A rank's end of the connection to its worker, for more than one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: RankMessage | Holding | Due) -> None:
        with self._lock:
            self._connection.send(message)


class Progress:
    """Tells what this rank is doing, and that it gets on: no more than once a second.

    All ranks tell of their first update, rank 0 alone of all else: where one rank does not get
    on, none does.
    """

    def __init__(self, link: Link, rank: int, steps: Steps) -> None:
        self._link, self._rank = link, rank
        self._steps = steps
        self._has_advanced = False
        self._doing = Activity.LOADING
        self._told = -math.inf

    def advanced(self, update: int) -> None:
        """An update has been completed; training goes on."""
        now = time.monotonic()
        if not self._has_advanced or self._is_due(Activity.TRAINING, now):
            steps = () if self._has_advanced else self._steps.so_far()
            self._has_advanced = True
            self._doing, self._told = Activity.TRAINING, now
            self._link.send(Advanced(update, now, steps))

    def doing(self, activity: Activity) -> None:
        """What comes next, or still goes on."""
        now = time.monotonic()
        if self._is_due(activity, now):
            self._doing, self._told = activity, now
            self._link.send(Doing(activity, now))

    def _is_due(self, activity: Activity, now: float) -> bool:
        return self._rank == 0 and (activity is not self._doing or now - self._told >= 1)
