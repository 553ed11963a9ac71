"""Which workers make the next generation: placing them, gathering them, taking in newcomers."""

from __future__ import annotations

from collections.abc import Mapping

from fairseq_ray_plugin.control import nodes, stopping
from fairseq_ray_plugin.control.state import UNHEARD_S, Phase, Standing, Step, Worker
from fairseq_ray_plugin.protocol import Place, Source, Start

START_PATIENCE_S = 10.0
"""How long workers that are ready wait for those still starting, before the first generation."""


SETTLE_S = 1.5
"""Newcomers within so long of each other make one resize; longer than a look for room takes."""


PLACEMENT_LIMIT_S = 120.0
"""A worker that is not ready after so long has no room in truth, or a broken machine."""


START_TRIES = 3
"""Workers in a row that may fail to start on every node before the run ends."""


NUM_KEEPERS = 2
"""Nodes of a generation that put a snapshot by from time to time."""


def place(s: Step, room: Mapping[str, int]) -> None:
    """Put a worker wherever there is room; take away those that are of no use any more."""
    in_use = s.state.ranks if s.state.phase is not Phase.GATHERING else ()
    for name, worker in list(s.workers.items()):
        if worker.node in s.state.leaving and name not in in_use:
            s.remove(name)
        elif worker.standing is Standing.STARTING and s.now - worker.since > PLACEMENT_LIMIT_S:
            s.log("removed", f"worker on {worker.node} did not start")
            s.remove(name)
    there = [
        name
        for name, worker in s.workers.items()
        if worker.node not in s.state.leaving
        and worker.standing is not Standing.SILENT
        and not s.is_unheard(name, UNHEARD_S)
    ]
    num_workers = len(there)
    if s.state.phase is Phase.TRAINING and s.max_ranks is not None and num_workers > s.max_ranks:
        # one that was silent is back after another had been placed for it
        spare = [name for name in there if name not in in_use]
        spare.sort(key=lambda name: s.workers[name].standing is not Standing.STARTING)
        for name in spare[: num_workers - s.max_ranks]:
            s.remove(name)
        num_workers = s.max_ranks
    for node, slots in sorted(room.items()):
        if node in s.state.leaving or not nodes.has_place(s.state.nodes, node, s.now):
            continue
        for _ in range(slots):
            if s.max_ranks is not None and num_workers >= s.max_ranks:
                if not s.state.told_of_spare_room and s.max_ranks != s.config.max_workers:
                    s.set(told_of_spare_room=True)
                    s.log("spare", f"an update has {s.max_ranks} mini-batches, for as many workers")
                return
            name = f"worker-{s.state.num_placed}"
            s.workers[name] = Worker(node, Standing.STARTING, s.now)
            s.set(num_placed=s.state.num_placed + 1)
            s.actions.append(Place(name, node))
            num_workers += 1


def gather(s: Step) -> None:
    """Start the next generation as soon as there are workers enough."""
    state = s.state
    if state.signal is not None:
        stopping.save_freshest(s)
        return
    ready = s.usable()
    starting = s.with_standing(Standing.STARTING)
    if len(ready) < s.config.min_workers:
        waiting = f"{s.config.min_workers} workers, {len(ready)} ready, {len(starting)} starting"
        if waiting != state.waiting:
            s.set(waiting=waiting)
            s.log("waiting", waiting)
        unfit = {node: record.unfit for node, record in state.nodes.items() if record.unfit}
        if not s.workers and unfit and all(len(r) >= START_TRIES for r in unfit.values()):
            node, reasons = next(iter(unfit.items()))
            s.end("failed", 1, f"workers cannot start; on {node}: {reasons[0]}")
        return
    if state.generation == 0 and (starting or s.now - state.since < SETTLE_S):
        # others are on their way, or what failed to start may yet be replaced
        first = min(s.workers[name].since for name in ready)
        if s.now - first < START_PATIENCE_S:
            return
    there = {s.workers[name].node for name in ready}
    coming = {s.workers[name].node for name in starting}
    sources = [source for node, source in state.snapshots.items() if node in there | coming]
    source = max([*sources, *filter(None, [state.checkpoint])], key=_freshness, default=None)
    if source is not None and source.node is not None and source.node not in there:
        return  # a fresh worker on the node that has the state
    ranks = _rank_order(s, ready, source)[: s.max_ranks]
    for name in ranks:
        s.set_worker(name, standing=Standing.TRAINING, held=None)
    s.set(
        generation=state.generation + 1,
        ranks=ranks,
        num_running=0,
        advanced=False,
        pace=state.pace.begin(s.now),
        cause=None,
        failures=(),
        at_once=False,
        saver=None,
        waiting=None,
    )
    first_on = {s.workers[name].node: name for name in reversed(ranks)}
    keepers = sorted(first_on.values(), key=ranks.index)[:NUM_KEEPERS]
    s.actions.append(Start(s.state.generation, ranks, source, frozenset(keepers)))
    s.enter(Phase.TRAINING)


def _freshness(source: Source) -> tuple[int, bool]:
    """Of a checkpoint and a snapshot after the same update, the checkpoint outlives the node."""
    return source.update or 0, source.node is not None


def _rank_order(s: Step, names: list[str], source: Source | None) -> tuple[str, ...]:
    """By node, the one that has the state first: rank 0 loads it, and saves checkpoints."""
    workers = s.workers
    old = {name: rank for rank, name in enumerate(s.state.ranks)}
    home = source.node if source else None
    first_of: dict[str, int] = {}
    for name in names:
        node, rank = workers[name].node, old.get(name, len(old))
        first_of[node] = min(rank, first_of.get(node, rank))

    def order(name: str) -> tuple[bool, int, str, int]:
        node = workers[name].node
        return (node != home, first_of[node], node, old.get(name, len(old)))

    return tuple(sorted(names, key=order))


def grows(s: Step) -> bool:
    """Whether there are newcomers, and taking them in is likely to pay for itself."""
    state = s.state
    if any(
        s.now - s.workers[name].since < START_PATIENCE_S
        for name in s.with_standing(Standing.STARTING)
    ):
        return False
    newcomers = [name for name in s.usable() if name not in state.ranks]
    if s.max_ranks is not None:
        newcomers = newcomers[: max(0, s.max_ranks - len(state.ranks))]
    if not newcomers:
        return False
    there_for = s.now - max(s.workers[name].since for name in newcomers)
    if there_for < SETTLE_S:
        return False
    # it costs one stall to take them in, and one to lose them again, at today's speed; where
    # losses come faster than that is won back, newcomers must have lasted as long themselves
    pays_after = 2 * state.stall_s * len(state.ranks) / len(newcomers)
    between = (s.now - state.losses[0]) / len(state.losses) if state.losses else pays_after
    return between >= pays_after or there_for >= pays_after
