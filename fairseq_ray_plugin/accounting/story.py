"""A journal, told as generations, stops and slots: what was there from when to when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fairseq_ray_plugin.accounting.spent import Spent

Line = Mapping[str, Any]
"""An event as the journal has it."""

PLANNED = ("RESIZED", "PREEMPTED", "INTERRUPTED", "TAKEN_OVER", "FINISHED")


@dataclasses.dataclass
class Generation:
    """Training on a fixed set of slots. Times are those of the journal's lines, in seconds."""

    number: int
    begin: float
    world_size: int
    source: int | None
    """The update that it went on from; None: it is not known yet."""

    start: int
    """Number of its start of the command, from 0."""

    best_before: int
    """The most updates that an earlier generation had completed."""

    workers: tuple[str, ...] = ()
    started: float | None = None
    advanced: float | None = None
    stopping: float | None = None
    end: float | None = None
    planned: bool = True
    update: int = 0
    """The last one that it completed, as far as is known."""

    tally: Mapping[str, float] | None = None
    is_final: bool = False
    slot_seconds: float = 0.0
    spent: dict[Spent, float] = dataclasses.field(default_factory=dict)
    """What its slots' seconds went to."""

    after: Stop | None = None
    """It began because of that."""

    @property
    def num_updates(self) -> int:
        return max(0, self.update - (self.source or 0))

    @property
    def num_redone(self) -> int:
        return max(0, min(self.update, self.best_before) - (self.source or 0))


@dataclasses.dataclass
class Stop:
    """A generation came to its end before the training did."""

    at: float
    """When ranks were asked to come to rest."""

    cause: str
    generation: int
    update: int
    node: str | None
    traceback: str
    planned: bool
    stacks: list[Line] = dataclasses.field(default_factory=list)
    recovered: float | None = None
    """When the first update after it was complete."""

    waited: float = 0.0
    """For room, of the time until then."""

    updates_redone: int = 0
    spent: dict[Spent, float] = dataclasses.field(default_factory=dict)
    """What it cost; seconds of slots."""

    before_s: float = 0.0
    """Of wall clock, from the last update that counts to the stop."""

    @property
    def kind(self) -> str:
        """Its cause in a word."""
        return self.cause.partition(":")[0].strip() or "?"

    @property
    def seconds(self) -> float | None:
        """Of wall clock that training stood still for it, or was in vain; None: it still does."""
        if self.recovered is None:
            return None
        return max(0.0, self.recovered - self.at - self.waited + self.before_s)

    @property
    def cost(self) -> float:
        """Seconds of slots."""
        return sum(self.spent.values())


@dataclasses.dataclass
class Slot:
    """A worker's place, for as long as the worker was there."""

    name: str
    node: str
    came: float
    ready: float | None = None
    gone: float | None = None


@dataclasses.dataclass
class Start:
    """The command was given."""

    run: str
    begin: float
    end: float
    """That of its last line."""

    outcome: str | None = None
    """How it ended; None: it has not, or nobody could write it down."""

    message: str = ""


@dataclasses.dataclass
class Point:
    """What training logged of itself."""

    update: int
    loss: float | None
    lr: float | None


@dataclasses.dataclass
class Story:
    """All that happened, in order."""

    starts: list[Start] = dataclasses.field(default_factory=list)
    generations: list[Generation] = dataclasses.field(default_factory=list)
    stops: list[Stop] = dataclasses.field(default_factory=list)
    slots: list[Slot] = dataclasses.field(default_factory=list)
    points: list[Point] = dataclasses.field(default_factory=list)
    dropped: int = 0
    """Mini-batches that training went on without, for lack of a GPU's memory."""

    events: list[Line] = dataclasses.field(default_factory=list)
    """The lines themselves, by time."""

    @property
    def begin(self) -> float:
        return self.starts[0].begin

    @property
    def end(self) -> float:
        """When it was last heard of."""
        return self.starts[-1].end

    @property
    def is_over(self) -> bool:
        return self.starts[-1].outcome is not None


def in_order(lines: Iterable[Any]) -> list[Line]:
    """The lines that can be used, with times that never go back: machines' clocks differ."""
    there: list[Line] = []
    latest = float("-inf")
    for line in lines:
        if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
            continue
        at = line.get("time")
        if not isinstance(at, int | float) or isinstance(at, bool) or at != at:
            continue
        latest = max(latest, float(at))
        there.append({**line, "time": latest})
    return there


def is_planned(cause: str) -> bool:
    """Whether a stop was asked for, rather than suffered."""
    return cause.partition(":")[0].strip().upper().replace(" ", "_") in PLANNED
