"""Another control loop goes on where one died: what is known again, from those who lived on.

The workers and their ranks live on without a loop. The new one asks each what it is, and has the
run's journal. Then all ranks come to rest by the ordinary planned stop, and say what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairseq_ray_plugin.assignment import Found
from fairseq_ray_plugin.control import copies
from fairseq_ray_plugin.control.failures import Cause
from fairseq_ray_plugin.control.state import (
    Action,
    End,
    Gathering,
    Log,
    Over,
    Roster,
    Standing,
    State,
    Stopping,
    Worker,
)
from fairseq_ray_plugin.protocol import Copy, Hold, InMemory, InSaveDir, Tell
from fairseq_ray_plugin.report.journal import Event, EventKind

Line = Mapping[str, Any]
"""An event as the journal has it."""


def take_over(
    found: Mapping[str, Found], lines: Sequence[Line], now: float
) -> tuple[State, list[Action]]:
    """The state that a new loop begins with, and what it does first.

    Args:
        found: the workers that answered.
        lines: what happened to this run, oldest first.
    """
    if lines and "exit_code" in lines[-1]:  # it died when all had been said and done
        return State(phase=Over()), [End(lines[-1]["exit_code"], lines[-1]["cause"])]
    if not lines and not any(there.is_ready for there in found.values()):
        return _begin_with(found, now), []
    told = max([f.newest for f in found.values()] + [line["generation"] for line in lines] + [0])
    update = max([f.update for f in found.values()] + [line["update"] or 0 for line in lines] + [0])
    # a number that nobody was told of: what the other loop said and is still on its way is void
    generation = told + 1
    ranks = _by_rank(found)
    kept = dict.fromkeys(copy for there in found.values() for copy in there.snapshots)
    newest_kept = {node: copies.to_keep(there) for node, there in _by_node(kept).items()}
    workers = Roster()
    for name, there in found.items():
        workers[name] = _worker(there, now, ranks.index(name) if name in ranks else -1)
    at_once = not all(_trains(found[name], told, len(ranks)) for name in ranks)
    state = State(
        phase=Stopping(now, Cause.TAKEN_OVER, at_once, now) if ranks else Gathering(now),
        workers=workers,
        num_placed=1 + max([-1, *map(_number, found)]),
        generation=generation,
        ranks=ranks,
        update=update,
        snapshots=newest_kept,
        superseded=tuple(copy for copy in kept if copy not in newest_kept.values()),
        checkpoint=_checkpoint(lines),
        stopped_at=now if ranks else None,
    )
    event = Event(
        kind=EventKind.TAKEN_OVER, generation=generation, world_size=len(ranks), update=update
    )
    return state, [Log(event), *(Tell(name, Hold(generation, at_once)) for name in ranks)]


def _begin_with(found: Mapping[str, Found], now: float) -> State:
    """There was no other loop: the command has placed them, for they take longest to be ready."""
    workers, since = Roster(), now
    for name, there in found.items():
        workers[name] = Worker(there.node, Standing.STARTING, now - there.age_s)
        since = min(since, now - there.age_s)
    return State(
        phase=Gathering(since), workers=workers, num_placed=1 + max(map(_number, found), default=-1)
    )


def _by_rank(found: Mapping[str, Found]) -> tuple[str, ...]:
    """All that are ready, the newest generation first: the others may have been told to start."""
    names = [name for name, there in found.items() if there.is_ready]
    return tuple(sorted(names, key=lambda name: (-found[name].generation, found[name].rank, name)))


def _trains(there: Found, generation: int, world_size: int) -> bool:
    """Whether its rank will end its update, if all others do."""
    return (there.generation, there.world_size) == (generation, world_size) and not there.is_at_rest


def _worker(there: Found, now: float, number: int) -> Worker:
    standing = Standing.TRAINING if there.is_ready else Standing.STARTING
    return Worker(there.node, standing, now, there.generation, number, pid=there.pid, gpu=there.gpu)


def _number(worker: str) -> int:
    """Of `worker-N`, as `membership.place` names them."""
    return int(worker.rpartition("-")[2])


def _by_node(kept: Iterable[Copy]) -> dict[str, list[Copy]]:
    by_node: dict[str, list[Copy]] = {}
    for copy in kept:
        assert isinstance(copy.place, InMemory)
        by_node.setdefault(copy.place.node, []).append(copy)
    return by_node


def _checkpoint(lines: Sequence[Line]) -> Copy | None:
    """The last that this run wrote; without it the user's options would count once more."""
    written = [line for line in lines if line["kind"] == EventKind.CHECKPOINT.value]
    return Copy(written[-1]["update"], InSaveDir(written[-1]["path"])) if written else None
