"""Which workers make the next generation: placing them, gathering them, taking in newcomers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fairseq_ray_plugin.control import copies, standby, stopping
from fairseq_ray_plugin.control.state import (
    UNHEARD_S,
    Ending,
    Gathering,
    Standing,
    Step,
    Training,
    Worker,
)
from fairseq_ray_plugin.protocol import Copy, HeldBy, Hold, InMemory, Place, Start
from fairseq_ray_plugin.report.journal import EventKind

START_PATIENCE_S = 10.0
"""How long workers that are ready wait for those still starting, before the first generation."""

SETTLE_S = 1.5
"""Newcomers within so long of each other make one resize; longer than a look for room takes."""

LONGEST_WAIT_S = 30.0
"""However many more are on their way, no newcomer waits longer for them."""

PLACEMENT_LIMIT_S = 120.0
"""A worker that is not ready after so long has no room in truth; one that is silent is lost."""

START_TRIES = 3
"""Workers in a row that may fail to start on every node before the run ends."""

NUM_KEEPERS = 2
"""Nodes of a generation that put a snapshot by from time to time."""


def place(s: Step, room: Mapping[str, int]) -> None:
    """Put a worker wherever there is room; take away those that are of no use any more."""
    _remove_useless(s)
    limit = s.max_ranks
    there = _lasting(s) if limit is not None else []
    num_workers = len(there)
    if limit is not None and num_workers > limit and isinstance(s.state.phase, Training):
        # one that was silent is back after another had been placed for it
        spare = [name for name in there if not s.is_in_generation(name)]
        spare.sort(key=lambda name: s.workers[name].standing is not Standing.STARTING)
        for name in spare[: num_workers - limit]:
            s.remove(name)
        num_workers = limit
    for node, slots in sorted(room.items()):
        if node in s.state.leaving or not s.node(node).has_place(s.now):
            continue
        for _ in range(slots):
            if limit is not None and num_workers >= limit:
                if not s.state.told_of_spare_room and limit != s.config.max_workers:
                    s.set(told_of_spare_room=True)
                    s.log(
                        EventKind.SPARE,
                        f"an update has {limit} mini-batches, for as many workers",
                    )
                return
            name = f"worker-{s.state.num_placed}"
            s.workers[name] = Worker(node, Standing.STARTING, s.now)
            s.set(num_placed=s.state.num_placed + 1)
            s.actions.append(Place(name, node))
            num_workers += 1


def _lasting(s: Step) -> list[str]:
    """Workers that are, or will be, of use."""
    nodes = {w.node for w in s.workers.values()}
    going = {n for n in nodes if n in s.state.leaving or s.is_unheard(n, UNHEARD_S)}
    silent = s.workers.names[Standing.SILENT]
    lasting = [n for n, w in s.workers.items() if w.node not in going and n not in silent]
    return [name for name in lasting if s.gpu_is_fit(name)] if s.state.gpus else lasting


def _remove_useless(s: Step) -> None:
    for standing, what in (
        (Standing.STARTING, "did not start"),
        (Standing.SILENT, "does not answer"),
    ):
        for name in s.with_standing(standing):
            node = s.workers[name].node
            if s.now - s.workers[name].since > PLACEMENT_LIMIT_S:
                if standing is Standing.STARTING:
                    s.nodes[node] = s.node(node).not_placed(s.now)
                s.log(EventKind.REMOVED, f"worker on {node} {what}")
                s.remove(name)
    leaving = s.state.leaving
    going = [n for n, w in s.workers.items() if w.node in leaving] if leaving else []
    best = copies.freshest(copies.at_hand(s)) if going else None
    for name in going:
        if isinstance(s.state.phase, Gathering) or not s.is_in_generation(name):
            # what is there and nowhere else is saved before it goes
            snapshot = s.state.snapshots.get(s.workers[name].node)
            if best is None or (best != snapshot and best.place != HeldBy(name)):
                s.remove(name)


def ask_the_silent(s: Step) -> None:
    """Workers whose nodes are heard of again may be back, or their answer was lost."""
    if s.now - s.state.asked_silent <= stopping.ASK_AGAIN_S:
        return
    asked = [
        name
        for name in s.with_standing(Standing.SILENT)
        if not s.is_unheard(s.workers[name].node, UNHEARD_S)
    ]
    if asked:
        s.set(asked_silent=s.now)
        s.tell(asked, Hold(s.state.generation, at_once=True))


def gather(s: Step, phase: Gathering) -> None:
    """Start the next generation as soon as there are workers enough."""
    state = s.state
    if state.ending is not None:
        stopping.end_when_saved(s, state.ending, phase.since)
        return
    ready = s.usable()
    copy = copies.to_go_on_from(s)
    match copy:
        case Copy(_, HeldBy(worker)):
            # no node that goes away, whose memory goes with it
            stopping.save(s, copy, worker, as_checkpoint=not s.stays(worker))
            return
        case Copy(_, InMemory(node)) if not s.node_stays(node):
            stopping.publish(s, copy, node)
            return
    starting = s.with_standing(Standing.STARTING)
    if len(ready) < s.config.min_workers:
        _wait(s, phase, len(ready), len(starting))
        return
    if state.generation == 0 and (starting or s.now - phase.since < SETTLE_S):
        # others are on their way, or what failed to start may yet be replaced
        first = min(s.workers[name].since for name in ready)
        if s.now - first < START_PATIENCE_S:
            return
    if not copies.awaited(s, phase.since, copy):
        _start(s, ready, copy)


def _wait(s: Step, phase: Gathering, num_ready: int, num_starting: int) -> None:
    waiting = f"{s.config.min_workers} workers, {num_ready} ready, {num_starting} starting"
    if waiting != s.state.waiting:
        s.set(waiting=waiting)
        s.log(EventKind.WAITING, waiting)
    unfit = {node: record.unfit for node, record in s.nodes.items() if record.unfit}
    if not s.workers and unfit and all(len(r) >= START_TRIES for r in unfit.values()):
        node, reasons = next(iter(unfit.items()))
        message = f"workers cannot start; on {node}: {reasons[0]}"
        ending = Ending(EventKind.FAILED, 1, message)
        s.end_soon(ending)
        stopping.end_when_saved(s, ending, phase.since)


def _start(s: Step, ready: list[str], source: Copy | None) -> None:
    nearby = copies.nearby(s, source) if source and isinstance(source.place, InMemory) else {}
    there = standby.for_start(s, ready, source, nearby)
    if there is not None:
        generation, ranks = there.generation, there.ranks
        source = nearby.get(s.workers[ranks[0]].node, source)
        s.set(standby=None)
    else:
        standby.stand_down(s)
        home = source.place.node if source and isinstance(source.place, InMemory) else None
        generation = standby.next_generation(s)
        ranks = standby.rank_order(s, ready, home)[: s.max_ranks]
    for rank, name in enumerate(ranks):
        s.set_worker(
            name,
            standing=Standing.TRAINING,
            generation=generation,
            rank=rank,
            held=None,
            pid=0,
        )
    s.failures.clear()
    s.num_running = 0
    s.end_step("gather")
    s.set(
        generation=generation,
        ranks=ranks,
        source=source,
        nearby=nearby,
        unwritten={},
        advanced=False,
        pace=s.state.pace.begin(s.now),
        waiting=None,
    )
    paths = {n: c.place.path for n, c in nearby.items() if isinstance(c.place, InMemory)}
    s.actions.append(Start(generation, ranks, source, frozenset(keepers(s)), paths))
    s.enter(Training(s.now))


def keepers(s: Step) -> list[str]:
    """The generation's workers that put snapshots by: on each of its first nodes the first one."""
    there = [name for name in s.state.ranks if name in s.workers]
    first_on = {s.workers[name].node: name for name in reversed(there)}
    return sorted(first_on.values(), key=lambda name: s.workers[name].rank)[:NUM_KEEPERS]


def leaves(s: Step) -> bool:
    """Whether a planned stop is due, since workers have to go."""
    state = s.state
    going = [n for n in state.ranks if n in s.workers and s.workers[n].node in state.leaving]
    if not going:
        return False
    left = min(state.leaving[s.workers[name].node] for name in going) - s.now
    return standby.is_there(s, [*_staying(s), *s.usable()], left)


def _staying(s: Step) -> list[str]:
    """Of a generation that trains, workers that need not go."""
    return [name for name in s.of_generation(Standing.TRAINING) if s.stays(name)]


def grows(s: Step) -> bool:
    """Whether a planned stop is due, since there are newcomers."""
    newcomers = _worth_taking_in(s)
    return bool(newcomers) and standby.is_there(s, [*_staying(s), *newcomers], math.inf)


def _worth_taking_in(s: Step) -> list[str]:
    """Newcomers, where taking them in is likely to pay for itself."""
    state = s.state
    num_free = len(s.workers) if s.max_ranks is None else s.max_ranks - len(state.ranks)
    if num_free <= 0 or len(s.workers) == len(state.ranks):
        return []
    newcomers = [name for name in s.usable() if not s.is_in_generation(name)][:num_free]
    if not newcomers:
        return []
    since = [s.workers[name].since for name in newcomers]
    there_for = s.now - max(since)
    if s.now - min(since) < LONGEST_WAIT_S and (there_for < SETTLE_S or _more_are_coming(s)):
        return []
    # it costs one stall to take them in, and one to lose them again, at today's speed; where
    # losses come faster than that is won back, newcomers must have lasted as long themselves
    pays_after = 2 * state.stall_s * len(state.ranks) / len(newcomers)
    between = (s.now - state.losses[0]) / len(state.losses) if state.losses else pays_after
    return newcomers if between >= pays_after or there_for >= pays_after else []


def _more_are_coming(s: Step) -> bool:
    return any(
        s.now - s.workers[name].since < START_PATIENCE_S
        for name in s.with_standing(Standing.STARTING)
    )
