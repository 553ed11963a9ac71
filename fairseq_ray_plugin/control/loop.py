"""The control loop's decisions: `step(state, observation, config) -> (state, actions)`.

Pure: no clock, no I/O, no Ray. A generation runs until something stops it; every stop takes the
same path, whatever its cause: the ranks hold their state, the freshest is saved (stopping.py),
and the next generation starts from it on the workers that are left.
"""

from __future__ import annotations

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import membership, nodes, stopping
from fairseq_ray_plugin.control.failures import Cause, Failure
from fairseq_ray_plugin.control.state import UNHEARD_S, Phase, Standing, State, Step
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Action,
    Event,
    Gone,
    Notice,
    Observation,
    Ready,
    Report,
    Source,
)

FINISH_S = 30.0
"""How long rank 0, when it is done, waits for the ranks that are not."""


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
        membership.place(s, observation.room)
    # a phase that ends may let the next one end too: a stop with every answer in is one step
    while True:
        before = s.state.phase
        match before:
            case Phase.GATHERING:
                membership.gather(s)
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
            s.set(nodes=nodes.started(s.state.nodes, worker.node))
        case Gone(name, reason, with_node):
            if with_node:
                s.set(nodes=nodes.dead(s.state.nodes, worker.node))
            elif worker.standing is Standing.STARTING:
                s.set(nodes=nodes.not_started(s.state.nodes, worker.node, reason, s.now))
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
        s.set(pace=state.pace.sign(s.now, protocol.TRAINING))
    if not state.advanced:
        s.set(advanced=True)
        if state.stopped_at is not None:
            s.set(stall_s=s.now - state.stopped_at, stopped_at=None)
        s.log("advanced")


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
    elif state.advanced and membership.grows(s):
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
