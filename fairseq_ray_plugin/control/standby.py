"""The ranks of the next generation are made while those of the last one still train, or save.

They stand by: forked, with task and model, having met. A stop that is planned begins when they do;
one that is not makes them while the state that is held is written. What becomes of them is of no
consequence: a generation for which none stand by is made when it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from fairseq_ray_plugin.control.state import Step
from fairseq_ray_plugin.protocol import (
    Blocked,
    Copy,
    Ended,
    FromRank,
    InMemory,
    Raised,
    RankMessage,
    Refusal,
    StandBy,
    StandDown,
    StandingBy,
)
from fairseq_ray_plugin.report.journal import EventKind

SHORT_S = 0.1
"""A state that is written within so long is not worth the cores that making ranks would take."""

PATIENCE_S = 60.0
"""A planned stop does not wait longer for ranks to stand by."""

SHARE_OF_NOTICE = 0.25
"""Nor for more of the time that is left to a node."""


@dataclasses.dataclass(frozen=True)
class Standby:
    """Ranks made ahead for a generation that may begin."""

    generation: int
    ranks: tuple[str, ...]
    since: float
    """When they were told to."""

    num_ready: int = 0
    """Ranks that stand by."""

    is_lost: bool = False
    """One of them will not go on: they are of no use, and others would fare no better now."""


def call(s: Step, names: Sequence[str], home: str | None, is_planned: bool = False) -> None:
    """Ranks are made on these workers for the next generation, if they are not.

    Args:
        home: the node whose memory will have the state.
        is_planned: training goes on meanwhile.
    """
    there = s.state.standby
    if there is not None and not there.is_lost and _serves(s, there, names, home):
        return  # before they are sorted: ten thousand may be asked for in each step
    ranks = rank_order(s, names, home)[: s.max_ranks]
    if there is not None:
        if there.ranks == ranks:
            return
        stand_down(s)
    generation = next_generation(s)
    s.set(standby=Standby(generation, ranks, s.now), newest=generation)
    s.actions.append(StandBy(generation, ranks, is_planned))


def _serves(s: Step, there: Standby, names: Sequence[str], home: str | None) -> bool:
    """Whether they are as good as others would be: who comes later is taken in later."""
    have, wanted = set(there.ranks), set(names)
    old = {name for name in names if s.is_in_generation(name)}
    is_home = s.workers[there.ranks[0]].node == home
    return is_home and old <= have <= wanted and (have != old or old == wanted)


def next_generation(s: Step) -> int:
    """A number that no rank has been told of."""
    return max(s.state.generation, s.state.newest) + 1


def stand_down(s: Step) -> None:
    """They are not wanted."""
    if s.state.standby is not None:
        there = [name for name in s.state.standby.ranks if name in s.workers]
        s.tell(there, StandDown(s.state.standby.generation))
        s.set(standby=None)


def is_there(s: Step, names: Sequence[str], left_s: float) -> bool:
    """Whether a planned stop may begin, after which these workers go on.

    Args:
        left_s: how long there is for it.
    """
    if len(names) < s.config.min_workers:
        return True
    stays = (name for name in s.state.ranks if name in s.workers and s.stays(name))
    first = next(stays, None)
    home = s.workers[first].node if first is not None else None
    call(s, names, home, is_planned=True)
    standby = s.state.standby
    assert standby is not None
    limit = min(PATIENCE_S, SHARE_OF_NOTICE * left_s)
    waits = not standby.is_lost and standby.num_ready < len(standby.ranks)
    return not waits or s.now - standby.since >= limit


def call_meanwhile(s: Step, home: str) -> None:
    """After a failure, while a node writes the state, ranks are made on all that can go on."""
    names = s.usable()
    if len(names) >= s.config.min_workers and s.node_stays(home):
        call(s, names, home)


def for_start(
    s: Step, ready: Iterable[str], source: Copy | None, nearby: Collection[str]
) -> Standby | None:
    """Who stands by for a generation that starts with some of these workers from this copy.

    Args:
        nearby: nodes whose memory has the same.
    """
    standby = s.state.standby
    if standby is None or standby.is_lost or source is None or not set(ready) >= {*standby.ranks}:
        return None
    home = s.workers[standby.ranks[0]].node
    is_home = home in nearby or not isinstance(source.place, InMemory)
    return standby if is_home else None


def hear(s: Step, name: str, envelope: FromRank) -> bool:
    """A rank says something; returns whether it is one that stands by."""
    standby = s.state.standby
    if standby is None or envelope.generation != standby.generation:
        return False
    says: RankMessage = envelope.says
    if isinstance(says, StandingBy):
        s.set(standby=dataclasses.replace(standby, num_ready=standby.num_ready + 1))
    else:  # it counts against nobody: what it means is found by one that trains
        lose(s, f"on node {s.workers[name].node[:8]}: {_reason(says)}")
    return True


def _reason(says: RankMessage) -> str:
    match says:
        case Ended(how):
            return f"its process {how}"
        case Raised(_, error):
            return f"{error.kind}: {error.message}".partition("\n")[0]
        case Refusal(reason) | Blocked(reason):
            return reason
    return str(says)


def lose(s: Step, reason: str) -> None:
    """One of them will not go on, and so none will."""
    standby = s.state.standby
    if standby is not None and not standby.is_lost:
        s.set(standby=dataclasses.replace(standby, is_lost=True))
        s.log(
            EventKind.STANDBY, f"a rank made ahead of the next generation cannot be used, {reason}"
        )


def rank_order(s: Step, names: Iterable[str], home: str | None) -> tuple[str, ...]:
    """By node, the one that has the state first: rank 0 loads it, and saves checkpoints."""
    workers = s.workers
    last = len(s.state.ranks)
    old = {name: workers[name].rank if s.is_in_generation(name) else last for name in names}
    first_of: dict[str, int] = {}
    for name in names:
        node = workers[name].node
        first_of[node] = min(old[name], first_of.get(node, last))

    def order(name: str) -> tuple[bool, int, str, int]:
        node = workers[name].node
        return (node != home, first_of[node], node, old[name])

    return tuple(sorted(names, key=order))
