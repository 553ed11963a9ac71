"""How fast training is, and each of its ranks alone: from what they say once a second."""

from __future__ import annotations

import collections
import heapq
import statistics
from typing import Any

from fairseq_ray_plugin.accounting.beat import Beat
from fairseq_ray_plugin.activity import Logged
from fairseq_ray_plugin.control.state import Gathering, Over, State, Training
from fairseq_ray_plugin.control.stragglers import Slow, Strides
from fairseq_ray_plugin.protocol import Advanced, FromRank, Heard, Observation

SPEED_S = 30.0
"""Updates a second are those of the last so many seconds."""

STILL = 5.0
"""Times the longest pause between two signs in that time: after so long training stands still."""

SLOWEST = 3
"""So many of the slowest ranks are written down."""


class Pulse:
    """What the ranks of the newest generation say of their speed."""

    def __init__(self) -> None:
        self._generation = -1
        self._strides = Strides()
        # of rank 0: the loop's clock, the rank's, and its updates
        self._signs: collections.deque[tuple[float, float, int]] = collections.deque()
        self._logged: Logged | None = None

    def hear(self, seen: Observation, state: State) -> list[tuple[str, dict[str, Any]]]:
        """Which ranks are named as slow now: a line for people each, and what programs want."""
        if state.generation != self._generation:
            self._generation = state.generation
            self._signs.clear()
            self._strides.begin(state.ranks, seen.now)
        for event in seen.events:
            match event:
                case Heard(name, FromRank(generation, Advanced() as says)):
                    if generation == state.generation:
                        self._hear(name, says, state, seen.now)
        named = self._strides.look(seen.now)
        return [_told(name, slow, state) for name, slow in named.items() if name in state.workers]

    def _hear(self, name: str, says: Advanced, state: State, now: float) -> None:
        if says.own is not None:
            self._strides.hear(name, says.own)
        if says.tally is not None and says.tally.logged is not None:
            self._logged = says.tally.logged
        if state.ranks and name == state.ranks[0]:
            self._signs.append((now, says.at, says.update))
            while says.at - self._signs[0][1] > SPEED_S and len(self._signs) > 2:
                self._signs.popleft()

    def strides_told(self, state: State) -> dict[str, Any] | None:
        """The median of what a mini-batch takes each rank, and the slowest; None: not known."""
        latest = self._strides.latest
        if len(latest) < 2:
            return None
        slowest = heapq.nlargest(SLOWEST, latest, key=lambda name: latest[name].seconds)
        return {
            "median": round(statistics.median_low(s.seconds for s in latest.values()), 4),
            "slowest": [
                {
                    "rank": state.workers[name].rank,
                    "node": state.workers[name].node,
                    "seconds": round(latest[name].seconds, 4),
                    "data": round(latest[name].data, 4),
                }
                for name in slowest
                if name in state.workers
            ],
        }

    def beat(self, state: State, now: float) -> Beat:
        """This moment."""
        speed = self._speed(now) if isinstance(state.phase, Training) else 0.0
        samples = self._logged.samples if self._logged is not None else None
        seconds = [stride.seconds for stride in self._strides.latest.values()]
        there = [(name, slow) for name, slow in self._strides.slow.items() if name in state.workers]
        rests = isinstance(state.phase, Gathering | Over)
        return Beat(
            generation=state.generation,
            world_size=0 if rests else len(state.ranks),
            update=state.update,
            updates_per_s=speed,
            samples_per_s=None if samples is None else samples * speed,
            loss=self._logged.loss if self._logged is not None else None,
            strides=(statistics.median_low(seconds), max(seconds)) if seconds else None,
            slow={
                (state.workers[name].node, state.workers[name].rank): slow.ratio
                for name, slow in there
            },
            num_left_out=sum(not record.is_usable(now) for record in state.nodes.values()),
            recovery_s=state.stall_s or None,
        )

    def _speed(self, now: float) -> float:
        if len(self._signs) < 2:
            return 0.0
        (_, begin, first), (heard, end, last) = self._signs[0], self._signs[-1]
        ats = [at for _, at, _ in self._signs]
        longest = max(later - at for at, later in zip(ats, ats[1:], strict=False))
        if end <= begin or now - heard > STILL * max(longest, 1.0):
            return 0.0
        return (last - first) / (end - begin)


def _told(name: str, slow: Slow, state: State) -> tuple[str, dict[str, Any]]:
    worker, stride = state.workers[name], slow.stride
    said = (
        f"rank {worker.rank} (on node {worker.node[:8]}) takes {stride.seconds:.3g} s for a "
        f"mini-batch, {100 * (slow.ratio - 1):.0f}% more than the median rank, for "
        f"{slow.for_s:.0f} s now: {stride.computing:.3g} s to compute, {stride.data:.3g} s to wait "
        "for data"
    )
    return said, {
        "rank": worker.rank,
        "node": worker.node,
        "seconds": round(stride.seconds, 4),
        "data": round(stride.data, 4),
        "median": round(slow.median, 4),
    }
