"""What happens to nodes when, in seconds of a replay: a part of a trace, or kills by chance."""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Sequence

from simulation.arrivals import Change, bamboo

PLACES = (0, 8, 16, 24)
"""Of the 32 that the instances of p3's trace take one after the other."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What happens, from the first update on."""

    name: str
    first: tuple[str, ...]
    """Nodes that are there at the beginning."""

    changes: Sequence[Change]
    length_s: float

    @property
    def losses(self) -> int:
        return sum(change.kind != "add" for change in self.changes)


def of_trace(
    instance: str, hours: tuple[float, float], speed: float, places: Sequence[int] = PLACES
) -> Schedule:
    """Some places of a trace's instances, between two of its hours, so many times as fast."""
    begin, end = (3600 * hour for hour in hours)
    there: list[str] = []
    changes = []
    for change in of_places(bamboo(instance), places):
        if change.at > end:
            break
        if change.at > begin:
            at = (change.at - begin) / speed
            changes.append(dataclasses.replace(change, at=at))
        elif change.kind == "add":
            there.append(change.node)
        else:
            there.remove(change.node)
    return Schedule(instance, tuple(there), changes, (end - begin) / speed)


def of_places(trace: Sequence[Change], places: Sequence[int]) -> list[Change]:
    """The changes of the instances that take one of the places: each takes the first free one."""
    free: list[int] = []
    place_of: dict[str, int] = {}
    most = 0
    chosen = []
    for change in trace:
        if change.kind == "add":
            if not free:
                free, most = [most], most + 1
            place_of[change.node] = free.pop(0)
            place = place_of[change.node]
        else:
            place = place_of.pop(change.node)
            bisect.insort(free, place)
        if place in places:
            chosen.append(change)
    return chosen


def of_kills(mtbf_s: float, length_s: float, nodes: tuple[str, ...], seed: int = 1) -> Schedule:
    """Processes that die by chance, so many seconds apart on average, on each node in turn.

    In turn, so that no node is taken for a bad one. There is one at the least, if need be at half
    of the time.
    """
    chance = random.Random(seed)
    times = []
    at = chance.expovariate(1 / mtbf_s)
    while at < length_s:
        times.append(at)
        at += chance.expovariate(1 / mtbf_s)
    times = times or [length_s / 2]
    changes = [Change(at, "kill", nodes[n % len(nodes)]) for n, at in enumerate(times)]
    return Schedule(f"mtbf {mtbf_s:g}", nodes, changes, length_s)
