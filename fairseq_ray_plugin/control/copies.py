"""Where the state of training is: every copy there is, within reach or not, and the freshest."""

from __future__ import annotations

from collections.abc import Iterable

from fairseq_ray_plugin.control.state import UNHEARD_S, Standing, Step
from fairseq_ray_plugin.protocol import Copy, HeldBy, InMemory, InSaveDir

AWAY_S = 10.0
"""How long a fresher copy that is out of reach is waited for."""

FULL_S = 900.0
"""How long a fresher copy is kept for which there is no room on any disk."""

RETRY_S = 5.0
"""When it is tried again to write it."""

_LASTS = (InSaveDir, InMemory, HeldBy)
"""Of copies after the same update, the one that will outlive the others: disk, node, process."""


def freshest(copies: Iterable[Copy]) -> Copy | None:
    """The copy after the most updates."""
    return max(copies, key=lambda c: (c.update, -_LASTS.index(type(c.place))), default=None)


def to_keep(copies: Iterable[Copy]) -> Copy:
    """Which of the copies in one node's memory stays there: the newest, by path of two as new.

    By path, for whoever decides decides alike: a loop that died may have told a worker to drop
    what the next one finds, and the order still be on its way.
    """

    def age(copy: Copy) -> tuple[int, str]:
        assert isinstance(copy.place, InMemory)
        return copy.update, copy.place.path

    return max(copies, key=age)


def to_go_on_from(s: Step) -> Copy | None:
    """The freshest copy at hand; of several one in memory, where a checkpoint has not all of it.

    fairseq leaves 32-bit parameters behind `--fp16` out of it, and what its options say.
    """
    best = freshest(at_hand(s))
    in_memory = nearby(s, best) if best is not None else {}
    return next(iter(in_memory.values()), best)


def nearby(s: Step, copy: Copy) -> dict[str, Copy]:
    """After the same update, in the memory of nodes that stay; the lowest rank's node first."""
    found = {
        there.place.node: there
        for there in at_hand(s)
        if isinstance(there.place, InMemory)
        and there.update == copy.update
        and s.node_stays(there.place.node)
    }
    if len(found) < 2:
        return found
    ranks: dict[str, int] = {}
    for name, worker in s.workers.items():
        rank = worker.rank if s.is_in_generation(name) else len(s.state.ranks)
        ranks[worker.node] = min(rank, ranks.get(worker.node, rank))
    return {node: found[node] for node in sorted(found, key=lambda node: (ranks[node], node))}


def at_hand(s: Step) -> list[Copy]:
    """What is held, in the memory of nodes that have a worker, and in the save dir."""
    kept = [s.state.checkpoint] if s.state.checkpoint else []
    return [copy for copy in [*_there(s), *kept] if not _is_put_off(s, copy)]


def awaited(s: Step, since: float, best: Copy | None) -> bool:
    """Whether a copy that is fresher than the best one at hand may soon be at hand, too.

    Args:
        since: when waiting for the next generation began.
    """
    update = best.update if best is not None else 0
    coming = {s.workers[name].node for name in s.with_standing(Standing.STARTING)}
    silent = {s.workers[name].node for name in s.with_standing(Standing.SILENT)}
    for copy in _in_memory(s, reachable=False):
        assert isinstance(copy.place, InMemory)
        node = copy.place.node
        may_come = (s.node_stays(node) or node in silent) and s.now - since < AWAY_S
        if copy.update > update and (node in coming or may_come):
            return True
    for copy in _held(s, silent=True):
        assert isinstance(copy.place, HeldBy)
        there = s.workers[copy.place.worker]
        # a machine that is cut off is not worth the time of more than an update
        is_cut_off = s.is_unheard(there.node, UNHEARD_S)
        if copy.update > update + is_cut_off and s.now - there.since < AWAY_S:
            return True
    # or may soon have room on a disk
    return not s.state.ending and any(
        copy.update > update and s.now - s.state.unwritten[copy][0] <= FULL_S
        for copy in _there(s)
        if copy in s.state.unwritten
    )


def _is_put_off(s: Step, copy: Copy) -> bool:
    """Whether there is no room for a copy that was to be written: now, or for good."""
    if copy not in s.state.unwritten:
        return False
    first, last = s.state.unwritten[copy]
    return s.state.ending is not None or s.now - last < RETRY_S or last - first > FULL_S


def _there(s: Step) -> list[Copy]:
    return [*_held(s, silent=False), *_in_memory(s, reachable=True)]


def _held(s: Step, silent: bool) -> list[Copy]:
    """What ranks at rest hold; the lowest rank first, on a node that stays before one that goes.

    The lowest has been saving the checkpoints, where its node alone sees the save dir.
    """
    holders = [
        (not s.stays(name), worker.rank, name, worker.held)
        for name, worker in s.workers.items()
        if worker.held is not None and (worker.standing is Standing.SILENT) is silent
    ]
    return [Copy(update, HeldBy(name)) for _, _, name, update in sorted(holders)]


def _in_memory(s: Step, reachable: bool) -> list[Copy]:
    away = (Standing.STARTING, Standing.SILENT)
    there = {w.node for w in s.workers.values() if w.standing not in away}
    return [
        copy
        for node, copy in s.state.snapshots.items()
        if (node in there and not s.is_unheard(node, UNHEARD_S)) is reachable
    ]
