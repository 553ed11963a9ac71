"""What was trained while nodes came and went, beside what could have been: from records alone.

Alike for every launcher: the recorder's lines say which rank completed which update with which
samples, and in which group of ranks. All is counted in samples, so that launchers compare whose
updates differ in size.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


class Loss(enum.Enum):
    """Why a sample that could have been trained was not; a member's value is its name."""

    STILL = "standing still"
    """From a group's last update to the end of the first of the next group, less an update."""

    REDONE = "updates done again"
    UNUSED = "slots not used"
    """While training went on with fewer: beginning, or not taken in."""

    SLOWER = "slower than undisturbed"
    """At the same number of ranks."""


@dataclasses.dataclass(frozen=True)
class Update:
    """One that was completed, by whichever group of ranks."""

    at: float
    number: int
    group: str
    world: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """In samples, but for the times in seconds."""

    seconds: float
    possible: float
    """By the slots that were there, at the undisturbed rate for so many."""

    trained: float
    """In updates that count; one that is done again counts once."""

    lost: Mapping[Loss, float]
    """With `trained`, adds up to `possible`."""

    updates: int
    redone: int
    longest_s: float
    """Without an update."""

    progress: Sequence[tuple[float, float, float]]
    """Seconds since the beginning, trained and possible so far."""

    @property
    def goodput(self) -> float:
        return self.trained / self.possible


def updates_of(begun: Sequence[Mapping[str, Any]], done: Sequence[Mapping[str, Any]]) -> list:
    """The updates that are complete on one rank at the least, as they became so.

    The gradients of all are in such an update, also those of a rank that died right after.

    Args:
        begun, done: the recorder's lines.
    """
    samples: dict[tuple[int, str], int] = {}
    for line in begun:
        key = (line["update"], str(line["group"]))
        samples[key] = samples.get(key, 0) + len(line["ids"])
    first: dict[tuple[int, str], Update] = {}
    for line in sorted(done, key=lambda line: line["time"]):
        key = (line["update"], str(line["group"]))
        first.setdefault(key, Update(line["time"], *key, line["world"], samples.get(key, 0)))
    return sorted(first.values(), key=lambda update: update.at)


def rate_of(updates: Sequence[Update], save_every: int) -> float:
    """Samples a second of an undisturbed run.

    Args:
        save_every: the updates after which a checkpoint is written are left out, and so is what is
            before the first of them.
    """
    plain, _ = _times(updates, save_every)
    return updates[-1].samples / statistics.fmean(plain)


def save_seconds(updates: Sequence[Update], save_every: int) -> float:
    """For how long training stands for a checkpoint."""
    plain, saving = _times(updates, save_every)
    return statistics.median(saving) - statistics.median(plain)


def _times(updates: Sequence[Update], save_every: int) -> tuple[list[float], list[float]]:
    """Seconds between updates' ends: without a checkpoint between, and with one."""
    plain, saving = [], []
    for before, after in zip(updates[save_every - 1 :], updates[save_every:], strict=False):
        times = saving if before.number % save_every == 0 else plain
        times.append(after.at - before.at)
    return plain, saving


def measure(
    updates: Sequence[Update],
    slots: Sequence[tuple[float, int]],
    rate: Mapping[int, float],
    begin: float,
    end: float,
) -> Measured:
    """What was made of the time between two moments, of which the first is an update's end.

    Args:
        slots: from when on how many were there, in order; the first is no later than `begin`.
        rate: samples a second, undisturbed, by the number of slots.
    """
    possible = trained = 0.0
    lost = dict.fromkeys(Loss, 0.0)
    best = max((update.number for update in updates if update.at <= begin), default=0)
    last = next(update for update in reversed(updates) if update.at <= begin)
    since, redone, longest = begin, 0, 0.0
    progress = [(0.0, 0.0, 0.0)]
    counted = [update for update in updates if begin < update.at <= end]
    if counted and end - counted[-1].at < 2 * counted[-1].samples / rate[counted[-1].world]:
        end = counted[-1].at  # what is under way at the end is no loss
    for update in [*counted, None]:
        until = end if update is None else update.at
        could = _possible(slots, rate, since, until)
        possible += could
        longest = max(longest, until - since)
        if update is None:
            lost[Loss.STILL] += could
            break
        by_ranks = min(could, rate[update.world] * (until - since))
        lost[Loss.UNUSED] += could - by_ranks
        slower = Loss.SLOWER if update.group == last.group else Loss.STILL
        lost[slower] += by_ranks - update.samples
        if update.number > best:
            trained += update.samples
        else:
            lost[Loss.REDONE] += update.samples
            redone += 1
        best, last, since = max(best, update.number), update, until
        progress.append((until - begin, trained, possible))
    return Measured(
        end - begin, possible, trained, lost, len(counted), redone, longest, _thinned(progress)
    )


def restarts(updates: Sequence[Update], faults: Sequence[float]) -> list[float]:
    """Seconds from each fault to the end of the first update of ranks that began after it."""
    began: dict[str, float] = {}
    for update in updates:
        began.setdefault(update.group, update.at)
    return [
        next(at for at in sorted(began.values()) if at > fault) - fault
        for fault in faults
        if max(began.values(), default=0.0) > fault
    ]


def _possible(
    slots: Sequence[tuple[float, int]], rate: Mapping[int, float], since: float, until: float
) -> float:
    """The integral of the rate over the slots that were there."""
    times = [at for at, _ in slots]
    place = max(0, bisect.bisect_right(times, since) - 1)
    total = 0.0
    for number, (_, count) in enumerate(slots[place:], place):
        begin = max(since, times[number])
        end = min(until, times[number + 1]) if number + 1 < len(times) else until
        if begin >= until:
            break
        total += rate.get(count, 0.0) * max(0.0, end - begin)
    return total


def _thinned(progress: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """A point a second, enough for a picture."""
    thin = progress[:1]
    for point in progress:
        if point[0] - thin[-1][0] >= 1.0:
            thin.append(point)
    return [(round(at, 1), round(trained), round(possible)) for at, trained, possible in thin]
