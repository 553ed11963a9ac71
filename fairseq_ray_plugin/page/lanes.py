"""What each slot did when, drawn as finely as there are pixels."""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from fairseq_ray_plugin.accounting.story import Generation, Slot, Story

KINDS = ("idle", "start", "train", "load", "stall")


@dataclasses.dataclass
class Lane:
    """A row: slots that were there one after the other, on one node if that can be."""

    slots: list[Slot] = dataclasses.field(default_factory=list)

    @property
    def gone(self) -> float | None:
        return self.slots[-1].gone


@dataclasses.dataclass(frozen=True)
class Span:
    """A slot did one thing for a while."""

    kind: str
    begin: float
    end: float
    generation: Generation | None = None


def lanes(story: Story) -> list[Lane]:
    """As many as there were slots at once."""
    rows: list[Lane] = []
    for slot in sorted(story.slots, key=lambda slot: slot.came):
        free = [row for row in rows if row.gone is not None and row.gone <= slot.came]
        free.sort(key=lambda row: row.slots[-1].node != slot.node)
        if not free:
            free = [Lane()]
            rows += free
        free[0].slots.append(slot)
    return sorted(rows, key=lambda row: (row.slots[0].came, row.slots[0].node))


def by_worker(story: Story) -> dict[str, list[Generation]]:
    """The generations that each worker had a rank of, oldest first."""
    there: dict[str, list[Generation]] = defaultdict(list)
    for generation in story.generations:
        for worker in generation.workers:
            there[worker].append(generation)
    return there


def spans(slot: Slot, generations: list[Generation], end: float) -> Iterable[Span]:
    """What a slot did, from when it came until it was gone, or the end of the story."""
    gone = end if slot.gone is None else slot.gone
    ready = min(gone, slot.ready if slot.ready is not None else gone)
    yield Span("start", slot.came, ready)
    at = ready
    first = bisect.bisect_left(generations, slot.came, key=lambda generation: generation.begin)
    for generation in generations[first:]:
        if generation.begin >= gone:
            break
        rest = min(gone, end if generation.end is None else generation.end)
        advanced = min(rest, rest if generation.advanced is None else generation.advanced)
        stopping = min(rest, rest if generation.stopping is None else generation.stopping)
        stopping = max(stopping, advanced)
        # between two generations a slot stands still; beside one it is idle
        yield Span("stall" if generation.after and at > ready else "idle", at, generation.begin)
        yield Span("load", generation.begin, advanced, generation)
        yield Span("train", advanced, stopping, generation)
        yield Span("stall", stopping, rest, generation)
        at = rest
    yield Span("idle", at, gone)


def columns(row: Iterable[Span], begin: float, scale: float, count: int) -> list[int]:
    """For each column what most of it is of `KINDS`, by number; -1: there was no slot.

    Args:
        scale: columns a second.
    """
    parts: list[dict[int, float]] = [{} for _ in range(count)]
    for span in row:
        left, right = (span.begin - begin) * scale, (span.end - begin) * scale
        level, column = KINDS.index(span.kind), int(left)
        if right <= column + 1 and column < count:
            parts[column][level] = parts[column].get(level, 0.0) + right - left
            continue
        for column in range(int(left), min(count, int(right) + 1)):
            part = min(right, column + 1) - max(left, column)
            if part > 0:
                parts[column][level] = parts[column].get(level, 0.0) + part
    return [max(there, key=lambda k: there[k]) if there else -1 for there in parts]


def runs(there: list[int]) -> Iterable[tuple[int, int, int]]:
    """Columns that are alike: level, first, and how many."""
    first = 0
    for column in range(1, len(there) + 1):
        if column == len(there) or there[column] != there[first]:
            if there[first] >= 0:
                yield there[first], first, column - first
            first = column
