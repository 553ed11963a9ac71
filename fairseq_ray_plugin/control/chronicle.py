"""What a step of the loop means for the run's account, which no decision needs to know.

Who was there, when generations were told to start and began to stop, what their time went to, and
who is slow: lines for the journal, beside those that the decisions themselves write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from fairseq_ray_plugin.activity import Tally
from fairseq_ray_plugin.control.pulse import Pulse
from fairseq_ray_plugin.control.state import Action, Log, Standing, State, Training
from fairseq_ray_plugin.protocol import (
    Advanced,
    Finished,
    FromRank,
    Gone,
    Heard,
    Held,
    Observation,
    Place,
    Raised,
    Ready,
    Remove,
    Start,
    Unfit,
)
from fairseq_ray_plugin.report.journal import Event, EventKind

EVERY_S = 5.0
"""How often there is a line on what a generation's time goes to, at most."""

SHARE = 0.01
"""And no oftener than after so much of the time so far: a run of weeks has hundreds."""


_WITH_TALLY = Advanced | Held | Raised | Finished


class Chronicle:
    """Says what has to be written down of each step.

    Args:
        state: what the loop begins with.
    """

    def __init__(self, state: State) -> None:
        self._begin: float | None = None
        self._told = 0.0
        self._tally: Tally | None = None
        self._update = 0
        """The update that the tally is of."""

        self._is_final = False
        """The generation has come to rest: its tally will not change."""

        self._inherited = state
        self.pulse = Pulse()

    def first(self) -> list[Event]:
        """Who is there already, where another loop's workers were taken over."""
        state = self._inherited
        if not state.workers:
            return []
        there = {name: worker.node for name, worker in state.workers.items()}
        is_starting = state.workers.names[Standing.STARTING]
        ready = [name for name in there if name not in is_starting]
        return [_event(state, EventKind.SLOTS, there=there, ready=ready)]

    def before(
        self, seen: Observation, before: State, after: State, actions: Iterable[Action]
    ) -> list[Event]:
        """What comes before that which the loop does after a step."""
        if self._begin is None:
            self._begin = self._told = seen.now
        events = _slots(seen, before, after, actions)
        self._hear(seen, before)
        events += [
            _event(before, EventKind.SLOW, said, **details)
            for said, details in self.pulse.hear(seen, before)
        ]
        has_stopped = _logs(actions, EventKind.STOPPED)
        is_over = "exit_code" in _details(actions)
        if isinstance(before.phase, Training) and (
            has_stopped or not isinstance(after.phase, Training)
        ):
            events.append(_event(before, EventKind.STOPPING))
        if has_stopped or is_over:
            events += self._progress(before, seen.now)
        elif seen.now - self._told >= max(EVERY_S, SHARE * (seen.now - self._begin)):
            events += self._progress(before, seen.now)
        return events

    def at(self, start: Start, state: State) -> list[Event]:
        """What comes with the start of a generation."""
        self._tally, self._is_final = None, False
        source = start.source.update if start.source else None  # then the user's options say
        return [
            Event(
                kind=EventKind.BEGINNING,
                generation=start.generation,
                world_size=len(start.ranks),
                update=state.update,
                details={"from": source, "workers": list(start.ranks)},
            )
        ]

    def _hear(self, seen: Observation, state: State) -> None:
        """The tally that reaches furthest: ranks begin together, and one may have died early."""
        for event in seen.events:
            match event:
                case Heard(_, FromRank(generation, says)) if isinstance(says, _WITH_TALLY):
                    tally, so_far = says.tally, self._tally
                    if generation != state.generation or tally is None or says.update is None:
                        continue
                    if so_far is None or tally.total() >= so_far.total():
                        self._tally, self._update = tally, says.update
                        self._is_final = not isinstance(says, Advanced)

    def _progress(self, state: State, now: float) -> list[Event]:
        if self._tally is None:
            return []
        self._told = now
        tally, self._tally = self._tally, None
        spent = {
            field.name: round(getattr(tally, field.name), 3)
            for field in dataclasses.fields(tally)
            if field.name != "logged"
        }
        details: dict[str, Any] = {"seconds": spent, "final": self._is_final}
        if tally.logged is not None:
            details["logged"] = dataclasses.asdict(tally.logged)
        if strides := self.pulse.strides_told(state):
            details["strides"] = strides
        return [_event(state, EventKind.PROGRESS, update=self._update, **details)]


def _event(
    state: State, kind: EventKind, cause: str | None = None, update: int | None = None, **more: Any
) -> Event:
    return Event(
        kind=kind,
        generation=state.generation,
        world_size=len(state.ranks),
        update=state.update if update is None else update,
        cause=cause,
        details=more,
    )


def _slots(
    seen: Observation, before: State, after: State, actions: Iterable[Action]
) -> list[Event]:
    """Who came, got ready or went: looked for where something happened alone."""
    came = {a.worker: a.node for a in actions if isinstance(a, Place)}
    left = {a.worker for a in actions if isinstance(a, Remove)}
    ready = []
    for event in seen.events:
        match event:
            case Heard(name, Ready()):
                ready.append(name)
            case Gone(name) | Heard(name, Unfit()):
                left.add(name)
    gone = sorted(name for name in left if name not in after.workers and name in before.workers)
    if not (came or ready or gone):
        return []
    details: dict[str, Any] = {"came": came, "ready": ready, "gone": gone}
    details = {key: names for key, names in details.items() if names}
    return [_event(before, EventKind.SLOTS, **details)]


def _logs(actions: Iterable[Action], kind: EventKind) -> bool:
    return any(isinstance(a, Log) and a.event.kind is kind for a in actions)


def _details(actions: Iterable[Action]) -> set[str]:
    return {key for a in actions if isinstance(a, Log) for key in a.event.details}
