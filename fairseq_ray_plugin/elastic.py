"""The control loop's decisions: `step(state, observation, config) -> (state, actions)`.

Pure: no clock, no I/O, no Ray. A generation runs until something stops it; every stop takes the
same path, whatever its cause: the ranks hold their state, the freshest is saved (stopping.py),
and the next generation starts from it on the workers that are left.
"""

from __future__ import annotations

from collections.abc import Mapping

from fairseq_ray_plugin import judgement, pace, stopping
from fairseq_ray_plugin.judgement import Cause, Failure
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Action,
    Event,
    Gone,
    Notice,
    Observation,
    Place,
    Ready,
    Report,
    Source,
    Start,
)
from fairseq_ray_plugin.state import UNHEARD_S, Phase, Standing, State, Step, Worker

START_PATIENCE_S = 10.0
"""How long workers that are ready wait for those still starting, before the first generation."""

SETTLE_S = 1.5
"""Newcomers within so long of each other make one resize; longer than a look for room takes."""

PLACEMENT_LIMIT_S = 120.0
"""A worker that is not ready after so long has no room in truth, or a broken machine."""

FINISH_S = 30.0
"""How long rank 0, when it is done, waits for the ranks that are not."""

START_TRIES = 3
"""Workers in a row that may fail to start on every node before the run ends."""

NUM_KEEPERS = 2
"""Nodes of a generation that put a snapshot by from time to time."""


def step(
    state: State, observation: Observation, config: ElasticConfig, max_ranks: int | None = None
) -> tuple[State, list[Action]]:
    """What follows from an observation.

    Args:
        max_ranks: more ranks than this would have nothing to do (mini-batches in an update), or
            are not wanted; None: no limit.
    """
    s = Step(state, observation.now, config, max_ranks, observation.heard)
    for node, deadline in observation.draining.items():
        _leave(s, node, "the cluster drains it", deadline)
    for event in observation.events:
        _hear(s, event)
    if observation.signal is not None and s.state.signal is None:
        s.set(signal=observation.signal)
    if s.state.phase is not Phase.ENDED:
        _place(s, observation.room)
    # a phase that ends may let the next one end too: a stop with every answer in is one step
    while True:
        before = s.state.phase
        match before:
            case Phase.GATHERING:
                _gather(s)
            case Phase.TRAINING:
                _train(s)
            case Phase.STOPPING:
                stopping.stop(s)
            case Phase.SAVING:
                stopping.check_saving(s)
            case Phase.ENDED:
                pass
        if s.state.phase is before:
            return s.state, s.actions


def _leave(s: Step, node: str, reason: str, deadline: float) -> None:
    if node not in s.state.leaving:
        s.set(leaving={**s.state.leaving, node: deadline})
        s.log("notice", f"node {node[:8]} goes in {deadline - s.now:.0f} s: {reason}")


def _hear(s: Step, event: Event) -> None:
    if event.worker not in s.workers:
        return
    worker = s.workers[event.worker]
    match event:
        case Ready(name):
            s.set_worker(name, standing=Standing.READY, since=s.now)
            s.set(nodes=judgement.started(s.state.nodes, worker.node))
        case Gone(name, reason, with_node):
            if with_node:
                s.set(nodes=judgement.dead(s.state.nodes, worker.node))
            elif worker.standing is Standing.STARTING:
                s.set(nodes=judgement.not_started(s.state.nodes, worker.node, reason, s.now))
                s.log("unfit", f"a worker did not start on {worker.node}: {reason}")
            if s.state.phase is Phase.GATHERING:
                s.set(since=s.now)
            text = f"{s.rank(name)}: {reason}"
            del s.workers[name]
            if name in s.state.ranks:
                stopping.fail(s, Failure(Cause.LOST, text, worker.node, with_node=with_node))
                stopping.unsaved(s, name)
        case Notice(_, reason, deadline):
            _leave(s, worker.node, reason, deadline)
        case Report() if event.generation == s.state.generation:
            _hear_report(s, event)
        case Report(kind="held" | "ended" | "raised") if worker.standing is Standing.SILENT:
            # a rank of an earlier generation that had been given up: its worker is of use again
            s.set_worker(event.worker, standing=Standing.READY, since=s.now, held=None)


_TELL_UPDATE = ("advanced", "checkpoint", "held", "raised", "finished")


def _hear_report(s: Step, report: Report) -> None:
    name, node = report.worker, s.workers[report.worker].node
    if report.update is not None and report.kind in _TELL_UPDATE:
        strikes = s.state.strikes.after(report.update)
        s.set(update=max(s.state.update, report.update), strikes=strikes)
    match report.kind:
        case "running":
            s.set_worker(name, pid=report.pid)
            s.set(num_running=s.state.num_running + 1)
            if s.state.num_running == len(s.state.ranks):
                ranks = [
                    {"rank": rank, "node": s.workers[name].node, "pid": s.workers[name].pid}
                    for rank, name in enumerate(s.state.ranks)
                    if name in s.workers
                ]
                s.log("started", ranks=ranks)
        case "missing":
            s.set(snapshots={n: x for n, x in s.state.snapshots.items() if x.path != report.text})
            s.set_worker(name, standing=Standing.READY)
            text = f"{s.rank(name)}: the snapshot {report.text} is gone"
            stopping.fail(s, Failure(Cause.LOST, text, node))
        case "advanced":
            _advanced(s, report)
        case "doing" if name == s.state.ranks[0]:
            s.set(pace=s.state.pace.sign(s.now, report.text))
        case "checkpoint":
            s.set(checkpoint=Source(report.text, report.update, None))
            s.log("checkpoint", path=report.text)
        case "held":
            s.set_worker(name, standing=Standing.READY, held=report.update)
        case "raised":
            text = f"{s.rank(name)} raised:\n{report.text}"
            s.set_worker(name, standing=Standing.READY, held=report.update)
            stopping.fail(s, Failure(Cause.FAILED, text, node, report.by_peer))
        case "refused":
            s.end("failed", 1, report.text)
        case "ended":
            s.set_worker(name, standing=Standing.READY, held=None)
            text = f"training process of {s.rank(name)} {report.text}"
            stopping.fail(s, Failure(Cause.LOST, text, node))
            stopping.unsaved(s, name)
        case "finished":
            s.set_worker(name, standing=Standing.FINISHED, since=s.now, held=report.update)
        case "saved" if s.state.phase is Phase.SAVING and name == s.state.saver:
            stopping.saved(s, Source(report.text, report.update, node))
        case "snapshot":
            stopping.keep(s, Source(report.text, report.update, node))
        case "unsaved":
            s.log("unsaved", report.text)
            stopping.unsaved(s, name)
        case "stacks":
            rank = s.state.ranks.index(name)
            s.log("stacks", f"what {s.rank(name)} was doing", rank=rank, stacks=report.text)


def _advanced(s: Step, report: Report) -> None:
    state = s.state
    if report.worker == state.ranks[0]:
        s.set(pace=state.pace.sign(s.now, pace.TRAINING))
    if not state.advanced:
        s.set(advanced=True)
        if state.stopped_at is not None:
            s.set(stall_s=s.now - state.stopped_at, stopped_at=None)
        s.log("advanced")


def _place(s: Step, room: Mapping[str, int]) -> None:
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
        if node in s.state.leaving or not judgement.has_place(s.state.nodes, node, s.now):
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


def _gather(s: Step) -> None:
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


def _train(s: Step) -> None:
    state = s.state
    done = s.with_standing(Standing.FINISHED)
    if done:
        # rank 0 writes the last checkpoint: nothing is finished before it is
        first = s.workers.get(state.ranks[0])
        if state.ranks[0] in done and (
            len(done) == len(state.ranks) or (first and s.now - first.since > FINISH_S)
        ):
            s.end("finished", 0, f"training finished after {state.update} updates")
            return
    if state.signal is not None:
        stopping.begin_stop(s, Cause.INTERRUPTED, at_once=False)
        return
    _watch(s)
    if s.state.phase is not Phase.TRAINING or done:
        return
    if any(s.workers[name].node in state.leaving for name in state.ranks if name in s.workers):
        stopping.begin_stop(s, Cause.PREEMPTED, at_once=False)
    elif state.advanced and _grows(s):
        stopping.begin_stop(s, Cause.RESIZED, at_once=False)


def _watch(s: Step) -> None:
    """Whether the ranks are still there, and getting on."""
    state = s.state
    for name in state.ranks:
        if name in s.workers and s.is_unheard(name, UNHEARD_S):
            text = f"{s.rank(name)}: its worker was not heard of for {UNHEARD_S:.0f} s"
            stopping.fail(s, Failure(Cause.LOST, text, s.workers[name].node, with_node=True))
            return
    limit = state.pace.limit(s.config.hang_timeout, state.strikes.count(Cause.HUNG))
    if s.now - state.pace.since > limit:
        text = f"no progress for {limit:.0f} s while {state.pace.doing} (--ray-hang-timeout)"
        stopping.fail(s, Failure(Cause.HUNG, text))


def _grows(s: Step) -> bool:
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
