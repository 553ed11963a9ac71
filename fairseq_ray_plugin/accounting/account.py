"""The figures of a run: how much of its time was training, what the rest went to, and why."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fairseq_ray_plugin.accounting.reader import read
from fairseq_ray_plugin.accounting.slowest import SlowRank, slowest
from fairseq_ray_plugin.accounting.spent import LOST, Spent, goodput
from fairseq_ray_plugin.accounting.story import Stop, Story


@dataclasses.dataclass(frozen=True)
class Blame:
    """What stops of a kind, or on a node, have cost."""

    what: str
    count: int
    slot_seconds: float
    updates_redone: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """Where the time of a run went; all starts of its command in one."""

    story: Story
    spent: dict[Spent, float]
    """Seconds of slots; in all `wall_s` times `slots`."""

    slots: int
    """The most that there were at once."""

    wall_s: float
    """From the first line to the last."""

    updates: int
    updates_redone: int
    """Completed, undone by a failure, and completed again."""

    causes: Sequence[Blame]
    """The dearest first."""

    nodes: Sequence[Blame]
    """Those on which failures began, the dearest first."""

    slowest: Sequence[SlowRank]
    """Ranks that the others waited for."""

    @property
    def goodput(self) -> float:
        """The share of the time of the slots that were there which went into updates that count."""
        return goodput(self.spent)

    @property
    def lost(self) -> list[tuple[Spent, float]]:
        """Seconds of slots that went to anything else, the most first."""
        return sorted(((k, self.spent[k]) for k in LOST), key=lambda pair: -pair[1])

    @property
    def failures(self) -> list[Stop]:
        """Stops that nobody asked for."""
        return [stop for stop in self.story.stops if not stop.planned]

    @property
    def between_failures_s(self) -> float | None:
        """The mean time between them, of the time that the command ran; None: there were none."""
        ran = sum(start.end - start.begin for start in self.story.starts)
        return ran / len(self.failures) if self.failures else None

    def recovery_s(self, *shares: float) -> list[float]:
        """Percentiles of the wall clock that stops cost: from the last update to the next."""
        seconds = sorted(s.seconds for s in self.story.stops if s.seconds is not None)
        return [percentile(seconds, share) for share in shares] if seconds else []

    @property
    def sizes(self) -> list[int]:
        """World sizes, one after the other."""
        sizes: list[int] = []
        for generation in self.story.generations:
            if generation.world_size not in sizes[-1:]:
                sizes.append(generation.world_size)
        return sizes


def account(lines: Iterable[Any]) -> Account:
    """The account of a journal's lines (see `reader.read`).

    Raises:
        Empty: there is nothing in it.
    """
    story, spent, slots = read(lines)
    return Account(
        story=story,
        spent=spent,
        slots=slots,
        wall_s=story.end - story.begin,
        updates=max([line.get("update") or 0 for line in story.events]),
        updates_redone=sum(g.num_redone for g in story.generations),
        causes=_blame((stop.kind, stop) for stop in story.stops),
        nodes=_blame((s.node, s) for s in story.stops if s.node and not s.planned),
        slowest=slowest(story.events),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so many are no larger than (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _blame(stops: Iterable[tuple[str, Stop]]) -> list[Blame]:
    by: dict[str, list[Stop]] = defaultdict(list)
    for what, stop in stops:
        by[what].append(stop)
    blames = [
        Blame(what, len(of), sum(s.cost for s in of), sum(s.updates_redone for s in of))
        for what, of in by.items()
    ]
    return sorted(blames, key=lambda blame: (-blame.slot_seconds, blame.what))
