"""From a journal to the account of its run, in one pass over the lines."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from fairseq_ray_plugin.accounting.spent import OF_A_STOP, Spent, Times, divide
from fairseq_ray_plugin.accounting.story import (
    Generation,
    Line,
    Point,
    Slot,
    Start,
    Stop,
    Story,
    in_order,
    is_planned,
)


class Empty(Exception):
    """There is nothing in the journal to tell of."""


def read(lines: Iterable[Any]) -> tuple[Story, dict[Spent, float], int]:
    """What happened; the seconds of slots by what they went to; and how many slots there were.

    The seconds add up to those of wall clock times the slots, the most that there were at once.

    Args:
        lines: of a journal, of any number of starts of the command; what is no event is left out.

    Raises:
        Empty: there are no events.
    """
    reader = Reader()
    for line in in_order(lines):
        reader.hear(line)
    if not reader.story.starts:
        raise Empty
    return reader.close()


class Reader:
    """A journal that is read line by line: what happened so far, and what time went to."""

    def __init__(self) -> None:
        self.story = Story()
        self.now = 0.0
        self.spent = dict.fromkeys(Spent, 0.0)
        self.most = 0
        self.up_s = self.down_s = self.there_s = 0.0
        self.points: dict[int, Point] = {}
        self.best = 0
        # of this start of the command
        self.is_over = True
        self.tells_slots = self.is_waiting = self.has_begun = False
        self.there: dict[str, Slot] = {}
        self.members: frozenset[str] = frozenset()
        self.counts: tuple[int, int, int] | None = None
        self.stacks: list[Line] = []
        self.generation: Generation | None = None
        self.stop: Stop | None = None

    def hear(self, line: Line) -> None:
        """The next line; its time is no earlier than that of the one before (see `in_order`)."""
        at = line["time"]
        if (
            not self.story.starts
            or str(line.get("run")) != self.story.starts[-1].run
            or self.is_over
        ):
            self._begin_start(line)
        self._go_on_until(at)
        self.story.events.append(line)
        start = self.story.starts[-1]
        start.end = at
        update = line.get("update") or 0
        generation = self.generation
        match line["kind"]:
            case "slots":
                self._slots(line)
            case "waiting":
                self.is_waiting = True
            case "beginning":
                self._begin_generation(line, tuple(line.get("workers", ())))
            case "started":
                self._started(line)
            case "advanced" if generation is not None and generation.advanced is None:
                self._advanced(generation, at, update)
            case "progress" if generation is not None:
                self._progress(generation, line)
            case "stopping" if generation is not None and generation.stopping is None:
                generation.stopping = at
            case "stopped":
                self._stopped(line, update)
            case "out of memory" if line.get("dropped"):
                self.story.dropped += 1
            case "stacks" if generation is not None:
                self.stacks.append(line)
        self.best = max(self.best, update)
        if "exit_code" in line:
            self._close_generation(at, planned=True)
            start.outcome, start.message = line["kind"], line.get("cause") or ""
            self.is_over = True

    def close(self) -> tuple[Story, dict[Spent, float], int]:
        """No more lines: what is under way is told as far as it got."""
        self._close_generation(self.now, planned=True)
        slots = self._fill_up()
        self.story.points = [self.points[update] for update in sorted(self.points)]
        return self.story, self.spent, slots

    def spent_until(self, at: float) -> dict[Spent, float]:
        """What seconds of slots went to, if nothing has happened since the last line.

        In all they are those of wall clock times the slots, as `read` has them. It takes as long
        after thousands of lines as after a few.
        """
        there = copy.copy(self)
        there.spent = dict(self.spent)
        there.stop = _copied(self.stop)
        if self.generation is not None:
            there.generation = copy.copy(self.generation)
            there.generation.after = _copied(self.generation.after)
        there._go_on_until(at)
        there._close_generation(there.now, planned=True)
        there._fill_up()
        return there.spent

    def _fill_up(self) -> int:
        """What was not there at all; returns the slots."""
        slots = max(self.most, 1)
        self.spent[Spent.INFRASTRUCTURE_RECOVERY] += max(0.0, slots * self.up_s - self.there_s)
        self.spent[Spent.DOWN] += slots * self.down_s
        return slots

    def _begin_start(self, line: Line) -> None:
        at = line["time"]
        if self.story.starts:
            self._close_generation(self.now, planned=True)
            for name in list(self.there):
                self._let_go(name, self.now)
            self.down_s += at - self.now
        self.now = at
        self.story.starts.append(Start(str(line.get("run")), at, at))
        self.is_over = self.tells_slots = self.is_waiting = self.has_begun = False
        self.members, self.counts, self.stop, self.stacks = frozenset(), None, None, []

    def _go_on_until(self, at: float) -> None:
        """Time passes, with what is there."""
        seconds = at - self.now
        self.now = at
        if seconds <= 0:
            return
        num_members, num_ready, num_starting = self.counts or self._count()
        num_there = num_members + num_ready + num_starting
        self.most = max(self.most, num_there)
        self.up_s += seconds
        self.there_s += seconds * num_there
        self.spent[Spent.PROGRAM_STARTUP] += num_starting * seconds
        if self.generation is not None:
            self.generation.slot_seconds += num_members * seconds
            self.spent[Spent.UNUSED] += num_ready * seconds
            return
        num_ready += num_members
        if self.is_waiting and (self.has_begun or not num_starting):
            kind = Spent.INFRASTRUCTURE_RECOVERY
            if self.stop is not None:
                self.stop.waited += seconds
        else:
            kind = Spent.HOLD_AND_SAVE if self.has_begun else Spent.PROGRAM_STARTUP
        self._spend(kind, num_ready * seconds, self.stop)

    def _count(self) -> tuple[int, int, int]:
        """Slots that are in the generation; and others that are ready, or starting."""
        members = sum(name in self.there for name in self.members)
        others = [slot for name, slot in self.there.items() if name not in self.members]
        ready = sum(slot.ready is not None for slot in others)
        self.counts = members, ready, len(others) - ready
        return self.counts

    def _spend(self, kind: Spent, seconds: float, stop: Stop | None) -> None:
        self.spent[kind] += seconds
        if stop is not None and kind in OF_A_STOP:
            stop.spent[kind] = stop.spent.get(kind, 0.0) + seconds

    # slots

    def _slots(self, line: Line) -> None:
        at = line["time"]
        self.tells_slots, self.counts = True, None
        if "there" in line:
            for name in set(self.there) - set(line["there"]):
                self._let_go(name, at)
        for name, node in {**line.get("there", {}), **line.get("came", {})}.items():
            self._let_come(name, node, at)
        for name in line.get("ready", ()):
            if name in self.there and self.there[name].ready is None:
                self.there[name].ready = at
        for name in line.get("gone", ()):
            self._let_go(name, at)

    def _let_come(self, name: str, node: str, at: float) -> None:
        if name not in self.there:
            self.there[name] = Slot(name, node, at)
            self.story.slots.append(self.there[name])

    def _let_go(self, name: str, at: float) -> None:
        slot = self.there.pop(name, None)
        if slot is not None:
            slot.gone = at

    # generations

    def _begin_generation(self, line: Line, workers: tuple[str, ...]) -> None:
        at = line["time"]
        self._close_generation(at, planned=True)
        self.generation = Generation(
            number=line.get("generation") or 0,
            begin=at,
            world_size=line.get("world_size") or len(workers),
            source=line.get("from"),
            start=len(self.story.starts) - 1,
            best_before=self.best,
            workers=workers,
            after=self.stop,
        )
        self.generation.update = self.generation.source or 0
        self.story.generations.append(self.generation)
        self.members, self.counts = frozenset(workers), None
        self.is_waiting = False
        self.stacks = []

    def _started(self, line: Line) -> None:
        """Journals of older versions have no more of a generation and its slots."""
        ranks = line.get("ranks", ())
        self.counts = None
        names = tuple(f"rank-{rank.get('rank')}" for rank in ranks)
        if not self.tells_slots:
            for name in set(self.there) - set(names):
                self._let_go(name, line["time"])
            for name, rank in zip(names, ranks, strict=True):
                self._let_come(name, str(rank.get("node")), line["time"])
                self.there[name].ready = self.there[name].ready or line["time"]
        if self.generation is None or self.generation.started is not None:
            self._begin_generation(line, names)
        assert self.generation is not None
        self.generation.started = line["time"]

    def _advanced(self, generation: Generation, at: float, update: int) -> None:
        generation.advanced = at
        self.has_begun = True
        if generation.source is None:
            generation.source = max(0, update - 1)
        generation.update = max(generation.update, generation.source + 1)
        for stop in reversed(self.story.stops):
            if stop.recovered is not None:
                break
            stop.recovered = at

    def _progress(self, generation: Generation, line: Line) -> None:
        generation.tally = line.get("seconds")
        generation.is_final = bool(line.get("final"))
        generation.update = max(generation.update, line.get("update") or 0)
        logged = line.get("logged")
        if logged:
            point = Point(logged["update"], logged.get("loss"), logged.get("lr"))
            self.points[point.update] = point

    def _stopped(self, line: Line, update: int) -> None:
        generation, at = self.generation, line["time"]
        cause = line.get("cause") or ""
        if generation is not None and generation.tally is None and update > generation.best_before:
            generation.update = max(generation.update, update)
        stop = Stop(
            at=at if generation is None or generation.stopping is None else generation.stopping,
            cause=cause,
            generation=line.get("generation") or 0,
            update=update,
            node=line.get("node"),
            traceback=line.get("traceback") or "",
            planned=is_planned(cause),
            stacks=self.stacks,
        )
        self.story.stops.append(stop)
        self.stop = stop
        self.stacks = []
        self._close_generation(at, stop.planned, stop)

    def _close_generation(self, at: float, planned: bool, stop: Stop | None = None) -> None:
        generation = self.generation
        if generation is None:
            return
        self.generation = None
        generation.end, generation.planned = at, planned
        begin = generation.begin
        spent, late = divide(
            Times(
                length=at - begin,
                started=None if generation.started is None else generation.started - begin,
                advanced=None if generation.advanced is None else generation.advanced - begin,
                stopping=None if generation.stopping is None else at - generation.stopping,
                planned=planned,
                tally=generation.tally,
                is_final=generation.is_final,
                num_updates=generation.num_updates,
                num_redone=generation.num_redone,
                is_first=generation.after is None,
            )
        )
        share = generation.slot_seconds / (at - begin) if at > begin else 0.0
        generation.spent = {kind: seconds * share for kind, seconds in spent.items()}
        redone = generation.num_redone / max(1, generation.num_updates)
        trained = generation.spent[Spent.PRODUCTIVE_TRAINING]
        undone = trained * redone / (1 - redone) if redone < 1 else None
        for kind, seconds in generation.spent.items():
            blamed = stop
            if kind is Spent.CHECKPOINT_RESTORE:
                blamed = generation.after
            elif kind is Spent.WASTED_PROGRESS and generation.after is not None:
                # what an earlier stop undid, and what this one did
                first = min(seconds, seconds if undone is None else undone)
                self._spend(kind, first, generation.after)
                seconds -= first
            self._spend(kind, seconds, blamed)
        if stop is not None:
            stop.before_s = late
        if generation.after is not None:
            generation.after.updates_redone += generation.num_redone


def _copied(stop: Stop | None) -> Stop | None:
    return None if stop is None else dataclasses.replace(stop, spent=dict(stop.spent))
