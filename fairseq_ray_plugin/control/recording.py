"""A run's observations in a file, and the decisions that they lead to once more."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import BinaryIO

from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.state import Action, Log, State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Observation


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What the decisions that follow in a recording hang on, beside the observations."""

    config: ElasticConfig
    max_ranks: int | None
    state: State = State()


@dataclasses.dataclass(frozen=True)
class Moment:
    """An observation, and what was decided."""

    observation: Observation
    actions: list[Action] | None = None
    """None: it is not known."""

    error: str = ""
    """The traceback of what `step` raised."""


def read(file: BinaryIO) -> Iterator[Beginning | Moment]:
    """The entries of a recording, which are pickled one after another; its end may be torn."""
    while True:
        try:
            yield pickle.load(file)
        except (EOFError, pickle.UnpicklingError):
            return


def replay(file: BinaryIO) -> Iterator[tuple[Moment, list[Action]]]:
    """Each moment of a recording, and what the loop decides today; up to one that could not be
    decided, after which the run was only brought to its end.

    Raises:
        ValueError: it is no recording.
    """
    entries = read(file)
    try:
        beginning = next(entries, None)
    except Exception:  # of what is no pickle anything can come
        beginning = None
    if not isinstance(beginning, Beginning):
        raise ValueError("not a recording of fairseq_ray_plugin")
    state = beginning.state
    for moment in entries:
        assert isinstance(moment, Moment)
        state, actions = loop.step(state, moment.observation, beginning.config, beginning.max_ranks)
        yield moment, actions
        if moment.error:
            return


def tell(moment: Moment, actions: list[Action]) -> Iterator[str]:
    """Lines for people: what was observed, what is decided, and where that is another thing."""
    observation = moment.observation
    if observation.events or actions:
        yield f"{observation.now:.3f}"
    for event in observation.events:
        yield f"  < {event}"
    for action in actions:
        if isinstance(action, Log):
            event_of_log = action.event
            yield f"  > {event_of_log.kind.value}: {event_of_log.cause or ''}".rstrip(": ")
        else:
            yield f"  > {action}"
    if moment.error:
        yield "  ! this could not be decided:"
        yield from (f"  ! {line}" for line in moment.error.splitlines())
    elif moment.actions is not None and moment.actions != actions:
        yield "  ! it was decided otherwise:"
        yield from (f"  ! {action}" for action in moment.actions)
