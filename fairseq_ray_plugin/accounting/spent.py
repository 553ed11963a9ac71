"""What the time of slots can go to, and how that of a generation divides."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping


class Spent(enum.Enum):
    """What a second of a slot went to; a member's value is its name for people.

    Named after ml-goodput-measurement's classes where those mean the same.
    """

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Spent:
        member = object.__new__(cls)
        member._value_, member.meaning = name, meaning
        return member

    PRODUCTIVE_TRAINING = "training", "updates that count"
    PROGRAM_STARTUP = "start-up", "imports, and each start's way to its first update"
    DATA_LOADING = "data", "the next batch was not there yet"
    VALIDATION = "validation", "--valid-subset"
    CHECKPOINT_SAVE = "checkpoints", "training stood while the state was copied or written"
    DETECTION = "detection", "a failure was not known yet, beyond the time of an update"
    HOLD_AND_SAVE = "hold and save", "ranks came to rest, and the freshest state was put by"
    CHECKPOINT_RESTORE = "fork and load", "the next generation began, up to its first batch"
    WASTED_PROGRESS = "redone updates", "updates that a failure undid, and the one in flight"
    INFRASTRUCTURE_RECOVERY = "waiting for room", "fewer slots than the run has had at most"
    UNUSED = "not used", "slots that were there, while training ran with fewer"
    DOWN = "between starts", "the command had ended, or its loop was gone"


LOST = tuple(kind for kind in Spent if kind is not Spent.PRODUCTIVE_TRAINING)

OF_A_STOP = frozenset(
    [Spent.DETECTION, Spent.HOLD_AND_SAVE, Spent.CHECKPOINT_RESTORE, Spent.WASTED_PROGRESS]
)
"""What a stop costs."""


def goodput(spent: Mapping[Spent, float]) -> float:
    """The share of the time of the slots that were there which went into updates that count."""
    there = sum(spent.values()) - spent[Spent.INFRASTRUCTURE_RECOVERY] - spent[Spent.DOWN]
    return spent[Spent.PRODUCTIVE_TRAINING] / there if there > 0 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """What is known of a generation's time when it is over, or so far; seconds of wall clock."""

    length: float
    """From the order to start it until it was at rest."""

    started: float | None
    """From the order until all its processes ran; None: they never did."""

    advanced: float | None
    """From the order until its first update was complete; None: it never was."""

    stopping: float | None
    """For how long it came to rest; None: it was not asked to."""

    planned: bool
    """It stopped between two updates, or has not stopped."""

    tally: Mapping[str, float] | None
    """What rank 0 or another said; None: nothing."""

    is_final: bool
    """They said it at rest."""

    num_updates: int
    """Completed."""

    num_redone: int
    """Of these, completed by an earlier generation, too, from which nothing was left."""

    is_first: bool
    """Of its start of the command."""


def divide(times: Times) -> tuple[dict[Spent, float], float]:
    """What a generation's time went to: seconds of wall clock, which add up to its length.

    Returns them, and how many of them lie between its last update and a stop nobody asked for.
    """
    hold = min(times.stopping or 0.0, times.length)
    spent = dict.fromkeys(Spent, 0.0)
    tally = _tally(times, times.length - (0.0 if times.planned else hold))
    known = sum(tally.values())
    rest = max(0.0, times.length - known)
    if times.planned:
        # ranks end their update while they come to rest: that has been counted
        spent[Spent.HOLD_AND_SAVE] = min(hold, rest) if times.is_final else 0.0
        rest -= spent[Spent.HOLD_AND_SAVE]
        late = 0.0 if times.is_final else max(0.0, rest - (times.started or 0.0))
        tally["training"] += late  # since it was last heard of
    else:
        spent[Spent.HOLD_AND_SAVE] = hold
        rest = max(0.0, rest - hold)
        late = _in_flight(times, rest)
        whole = tally["training"] / times.num_updates if times.num_updates else late
        spent[Spent.WASTED_PROGRESS] = min(late, whole)
        spent[Spent.DETECTION] = late - spent[Spent.WASTED_PROGRESS]
    rest = max(0.0, rest - late)
    redone = tally["training"] * min(1.0, times.num_redone / max(1, times.num_updates))
    spent[Spent.PRODUCTIVE_TRAINING] = tally["training"] - redone
    spent[Spent.WASTED_PROGRESS] += redone
    spent[Spent.DATA_LOADING] = tally["data"]
    spent[Spent.VALIDATION] = tally["validating"]
    spent[Spent.CHECKPOINT_SAVE] = tally["saving"]
    begin = Spent.PROGRAM_STARTUP if times.is_first else Spent.CHECKPOINT_RESTORE
    spent[begin] += tally["loading"] + rest
    return _scaled(spent, times.length), late if not times.planned else 0.0


def _tally(times: Times, limit: float) -> dict[str, float]:
    """What is known to be done, no longer than `limit` in all."""
    names = ("loading", "training", "data", "validating", "saving")
    if times.tally is None:
        loading = limit if times.advanced is None else min(times.advanced, limit)
        return {**dict.fromkeys(names, 0.0), "loading": loading, "training": limit - loading}
    tally = {name: max(0.0, times.tally.get(name, 0.0)) for name in names}
    if times.advanced is None:  # what it did was never complete
        tally["loading"] += times.tally.get("in_flight", 0.0) + tally.pop("training")
        tally["training"] = 0.0
    total = sum(tally.values())
    share = min(1.0, limit / total) if total else 1.0
    return {name: seconds * share for name, seconds in tally.items()}


def _in_flight(times: Times, rest: float) -> float:
    """Of what is not accounted for, that after the last update."""
    if times.tally is None or times.advanced is None:
        return 0.0
    if times.is_final:
        return min(rest, times.tally.get("in_flight", 0.0))
    return max(0.0, rest - (times.started or 0.0))


def _scaled(spent: dict[Spent, float], length: float) -> dict[Spent, float]:
    """Rounding aside they add up already."""
    total = sum(spent.values())
    if total <= 0:
        return {**spent, Spent.HOLD_AND_SAVE: length}
    return {kind: max(0.0, seconds) * length / total for kind, seconds in spent.items()}
