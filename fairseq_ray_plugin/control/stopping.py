"""How a generation stops: the ranks hold their state, and the freshest is saved.

The same path for every cause, the run's end among them. A rank cannot complete update N+1 before
all have completed N, so the states held differ by one update at the most.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fairseq_ray_plugin.control import copies, nodes, own_copies, standby
from fairseq_ray_plugin.control.failures import Cause, Failure, describe, first_cause
from fairseq_ray_plugin.control.state import (
    Ending,
    Gathering,
    Saving,
    Standing,
    Step,
    Stopping,
    Training,
)
from fairseq_ray_plugin.protocol import (
    Copy,
    Delayed,
    Drop,
    HeldBy,
    Hold,
    InMemory,
    InSaveDir,
    Publish,
    Save,
)
from fairseq_ray_plugin.report.journal import EventKind

SILENCE_S = 1.0
"""A rank whose node has not been heard of for so long, at a stop, is not waited for."""

ANSWER_LIMIT_S = 25.0
"""How long any rank is waited for; an unanswering process is ended by its worker before that."""

ASK_AGAIN_S = 5.0
"""An order may be lost: who has not answered by then is asked again."""

STACKS_LIMIT_S = 10.0
"""How much longer where the stacks of all threads are taken first."""

ECHO_S = 0.5
"""How long the other ranks have, after an exception of one, to raise it, too."""

GRACE_S = 60.0
"""How long a planned stop waits for the first rank to end the update it is in."""

END_GRACE_S = 5.0
"""The same at a run's end: who sent SIGTERM waits half a minute, perhaps, and a save is to come."""

SAVE_LIMIT_S = 900.0
"""A state that is not on its way to disk by then never will be."""

NUM_LOSSES = 5
"""How many of the last losses tell how often they come."""


def fail(s: Step, failure: Failure) -> None:
    """Something went wrong in the generation: it stops, if it was training."""
    s.failures.append(failure)
    if failure.node is not None and not (failure.by_peer or failure.with_node):
        s.nodes[failure.node] = s.node(failure.node).failed(s.now)
        if failure.gpu and failure.may_be_gpus:
            s.set(gpus={**s.state.gpus, failure.gpu: s.gpu(failure.gpu).failed(s.now)})
    if isinstance(s.state.phase, Training):
        at_once = failure.by_peer or failure.cause is not Cause.FAILED
        begin_stop(s, failure.cause, at_once)


def begin_stop(s: Step, cause: Cause, at_once: bool) -> None:
    state = s.state
    if state.stopped_at is None:
        s.set(stopped_at=s.now, steps={}, step_ended_at=s.now)
    s.enter(Stopping(s.now, cause, at_once, s.now))
    _hold_the_rest(s, at_once, with_stacks=cause is Cause.HUNG)


def _hold_the_rest(s: Step, at_once: bool, with_stacks: bool = False) -> None:
    generation = s.state.generation
    s.tell(s.of_generation(Standing.TRAINING), Hold(generation, at_once, with_stacks))


def stop(s: Step, phase: Stopping) -> None:
    """Go on once every rank has answered, is dead, or has been silent for too long."""
    state = s.state
    waited = s.now - phase.since
    if phase.at_once and waited == 0 and s.workers.names[Standing.TRAINING]:
        return  # they have only just been asked
    open_ranks = s.of_generation(Standing.TRAINING)
    if open_ranks and not phase.at_once:
        # one rank at rest means that the others wait for it in a collective
        answered = len(open_ranks) < sum(name in s.workers for name in state.ranks)
        lost = any(f.by_peer or f.cause is not Cause.FAILED for f in s.failures)
        limit = ECHO_S if phase.cause is Cause.FAILED else 0 if answered else _grace(s, phase)
        if lost or waited >= limit:
            s.enter(dataclasses.replace(phase, since=s.now, at_once=True, asked=s.now))
            _hold_the_rest(s, at_once=True)
        return
    limit = ANSWER_LIMIT_S + (STACKS_LIMIT_S if phase.cause is Cause.HUNG else 0)
    silent = [
        name
        for name in open_ranks
        if waited > limit or (waited > SILENCE_S and s.is_unheard(s.workers[name].node, SILENCE_S))
    ]
    if len(silent) < len(open_ranks):
        if s.now - phase.asked > ASK_AGAIN_S:
            s.enter(dataclasses.replace(phase, asked=s.now))
            _hold_the_rest(s, at_once=True)
        return
    for name in silent:
        s.set_worker(name, standing=Standing.SILENT, since=s.now)
        fail(s, Failure(Cause.LOST, f"{s.describe(name)} does not answer", with_node=True))
    finished = s.of_generation(Standing.FINISHED)
    if state.ranks[0] in finished and finish(s):
        return
    for name in finished:  # what they hold is the last update, with rank 0's checkpoint to come
        s.set_worker(name, standing=Standing.READY)
    if phase.cause is Cause.PREEMPTED or any(f.cause is Cause.LOST for f in s.failures):
        s.set(losses=(*state.losses, s.now)[-NUM_LOSSES:])
    s.end_step("hold")
    first = first_cause(s.failures)
    more: dict[str, Any] = {"node": first.node} if first and first.node else {}
    if first and first.gpu:
        more["gpu"] = first.gpu
    if first and first.error:
        more |= {"fault": first.error.fault.name, "traceback": first.error.traceback}
    s.log(EventKind.STOPPED, describe(phase.cause, first), **more)
    if first is not None and state.ending is None:
        _judge(s, first)
    s.enter(Gathering(s.now))


def finish(s: Step) -> bool:
    """Rank 0 has come to the end of the training; whether the run is over with that."""
    message = f"training finished after {s.state.update} updates"
    if s.state.delayed is None:
        s.end(Ending(EventKind.FINISHED, 0, message))
        return True
    if s.state.ending is None:
        reason = s.state.delayed.reason
        s.end_soon(Ending(EventKind.FAILED, 1, f"{message}, but could not be saved: {reason}"))
    return False


def _grace(s: Step, phase: Stopping) -> float:
    """Half of the time that is left to a rank's node may go into ending an update."""
    leaving = s.state.leaving
    nodes = {s.workers[n].node for n in s.of_generation(Standing.TRAINING)} if leaving else set()
    left = [leaving[node] - phase.since for node in nodes if node in leaving]
    grace = GRACE_S if s.state.ending is None else END_GRACE_S
    return min([grace, *(max(0.0, seconds / 2) for seconds in left)])


def _judge(s: Step, failure: Failure) -> None:
    """End the run where another try would only fail again; leave out nodes that always fail."""
    raised_on = [(f.node, f.gpu) for f in s.failures if f.is_exception]
    if len({node for node, _ in raised_on}) > 1:  # no one node's fault
        failure = dataclasses.replace(failure, node=None)
    if len({gpu for _, gpu in raised_on}) > 1:
        failure = dataclasses.replace(failure, gpu="")
    s.set(strikes=s.state.strikes.add(s.state.update, failure))
    if _leaves_out(s, failure):  # and whoever is left may do better
        return
    verdict = s.state.strikes.verdict(s.config.max_failures)
    if verdict is not None:
        s.end_soon(Ending(EventKind.FAILED, 1, verdict))


def _leaves_out(s: Step, failure: Failure) -> bool:
    """Do without the GPU that has failed, or else the node, where it always does, and alone."""
    if failure.by_peer or failure.with_node:
        return False
    raised, least = s.state.strikes.raised_again(), s.config.min_workers
    there = [s.workers[name] for name in s.usable()]
    why = "training fails there again and again"
    gpu, node = failure.gpu, failure.node
    if gpu and sum(worker.gpu != gpu for worker in there) >= least:
        after = nodes.GPU_SUSPECT_AFTER
        if {f.gpu for f in raised} == {gpu} or nodes.is_suspect(s.state.gpus, gpu, s.now, after):
            leave_out(s, node, gpu, why)
            return True
    if node is not None and sum(worker.node != node for worker in there) >= least:
        if {f.node for f in raised} == {node} or nodes.is_suspect(s.nodes, node, s.now):
            leave_out(s, node, "", why)
            return True
    return False


def leave_out(s: Step, node: str | None, gpu: str, why: str) -> None:
    """A GPU is of no use for a while, or a node where it is not known which."""
    if gpu:
        record = s.gpu(gpu).left_out(s.now)
        s.set(gpus={**s.state.gpus, gpu: record})
        if node is not None:
            s.nodes[node] = s.node(node).forgiven()
        what = f"GPU {gpu}" + (f" of node {node[:8]}" if node else "")
    else:
        assert node is not None
        record = s.nodes[node] = s.node(node).left_out(s.now)
        what = f"node {node[:8]}"
    more: dict[str, Any] = {name: value for name, value in (("node", node), ("gpu", gpu)) if value}
    s.log(EventKind.LEFT_OUT, f"{what} for {record.use_after - s.now:.0f} s: {why}", **more)


def save(
    s: Step, copy: Copy, worker: str, as_checkpoint: bool, is_second_try: bool = False
) -> None:
    """A copy is to become a file."""
    if worker in s.state.putting_by and not as_checkpoint:  # its own node's is this one now
        s.set(putting_by=s.state.putting_by - {worker})
    else:
        order = Publish(copy) if isinstance(copy.place, InMemory) else Save(as_checkpoint)
        s.tell([worker], order)
    if not as_checkpoint:
        own_copies.put_by(s, copy, s.workers[worker].node)
    s.enter(Saving(s.now, copy, worker, as_checkpoint, is_second_try))


def end_when_saved(s: Step, ending: Ending, since: float) -> None:
    """The run ends; the freshest copy is a checkpoint by then, if anything can be saved.

    Args:
        since: when it came to rest.
    """
    copy = copies.freshest(copies.at_hand(s)) if ending.saves else None
    if ending.saves and copies.awaited(s, since, copy):
        return
    if copy is None or copy.update == 0:  # nothing that the same command would not do again
        s.end(ending)
        return
    match copy.place:
        case InSaveDir(path):
            s.end(ending, f"{path} is the state after update {copy.update}")
        case HeldBy(worker):
            save(s, copy, worker, as_checkpoint=True)
        case InMemory(node):
            publish(s, copy, node)


def publish(s: Step, copy: Copy, node: str) -> None:
    """A snapshot in a node's memory becomes a checkpoint; a worker there copies the file."""
    worker = next(n for n, w in s.workers.items() if w.node == node and own_copies.can_write(s, n))
    save(s, copy, worker, as_checkpoint=True)


def check_saving(s: Step, phase: Saving) -> None:
    """Whoever saves may be dead or cut off, or its disk stuck."""
    worker = s.workers.get(phase.worker)
    if phase.written_at is not None:
        s.enter(phase)
        is_late = s.now - phase.written_at >= phase.written_at - phase.since
        if is_late or not own_copies.may_be_written(s):
            s.end_step("save")
            s.enter(Gathering(s.now))
    elif worker is None or (isinstance(phase.copy.place, HeldBy) and worker.held is None):
        s.enter(Gathering(s.now))
    elif not own_copies.can_write(s, phase.worker):
        lose_writer(s, phase)
    elif s.now - phase.since > SAVE_LIMIT_S:
        not_saved(s, f"{s.describe(phase.worker)} took longer than {SAVE_LIMIT_S:.0f} s")
    elif not phase.as_checkpoint and s.now - phase.since >= standby.SHORT_S:
        standby.call_meanwhile(s, worker.node)


def lose_writer(s: Step, phase: Saving) -> None:
    """Whoever saves cannot be reached: it is asked whether it is back, while others may serve."""
    s.log(EventKind.UNSAVED, f"{s.describe(phase.worker)} does not answer")
    s.set_worker(phase.worker, standing=Standing.SILENT, since=s.now)
    s.enter(Gathering(s.now))


def saved(s: Step, name: str, update: int, path: str) -> None:
    """A copy has become a file: the one that is waited for, or a node's own."""
    phase, in_memory = s.state.phase, Copy(update, InMemory(s.workers[name].node, path))
    if name in s.state.putting_by:  # it may have been slow, and training go on
        s.set(putting_by=s.state.putting_by - {name})
        keep(s, name, in_memory)
    elif not isinstance(phase, Saving) or phase.worker != name:
        return
    elif phase.as_checkpoint:
        s.end_step("save")
        s.set(checkpoint=Copy(update, InSaveDir(path)))
        s.log(EventKind.CHECKPOINT, update=update, path=path)
        s.enter(Gathering(s.now))
    else:
        keep(s, name, in_memory)
        check_saving(s, dataclasses.replace(phase, written_at=s.now))


def unsaved(s: Step, name: str, reason: str) -> None:
    """A copy has not: others write it, or its node does without."""
    phase = s.state.phase
    if name in s.state.putting_by:
        s.set(putting_by=s.state.putting_by - {name})
    elif isinstance(phase, Saving) and phase.worker == name:
        not_saved(s, reason)


def keep(s: Step, worker: str, copy: Copy) -> None:
    """A node has another state in its memory; older ones go, but for one that is in use."""
    node = s.workers[worker].node
    old = s.state.snapshots.get(node)
    there = {copy, *([old] if old else []), *(c for c in s.state.superseded if _is_on(c, node))}
    kept = copies.to_keep(there)
    s.set(snapshots={**s.state.snapshots, node: kept})
    in_use = set() if s.state.advanced else {s.state.source, s.state.nearby.get(node)}
    useless = there - {kept, *in_use}
    others = [c for c in s.state.superseded if not _is_on(c, node)]
    s.set(superseded=(*others, *(there - {kept} - useless)))
    paths = frozenset(c.place.path for c in useless if isinstance(c.place, InMemory))
    if paths:
        s.tell([worker], Drop(paths))


def is_checkpoint(s: Step, copy: Copy, **written: Any) -> None:
    """One has been written, behind training: it may have been due for long.

    Args:
        written: what else is known of that, for the journal.
    """
    assert isinstance(copy.place, InSaveDir)
    known, delayed = s.state.checkpoint, s.state.delayed
    if known is None or known.update <= copy.update:
        s.set(checkpoint=copy)
    if delayed is not None and delayed.update <= copy.update:
        s.set(delayed=None)
    s.log(EventKind.CHECKPOINT, update=copy.update, path=copy.place.path, **written)


def is_delayed(s: Step, delayed: Delayed) -> None:
    """One could not be written, while training goes on."""
    s.set(delayed=delayed)
    known = s.state.checkpoint.update if s.state.checkpoint else 0
    then = "given up for newer ones" if delayed.given_up else "tried again"
    s.log(
        EventKind.UNSAVED,
        f"the checkpoint after update {delayed.update}, which is {then}: {delayed.reason}; without "
        f"what is in memory {s.state.update - known} updates would be lost",
    )


def not_saved(s: Step, reason: str) -> None:
    """The copy could not be written: as the other kind of file, by another, or later it may be."""
    phase = s.state.phase
    assert isinstance(phase, Saving)
    copy, unwritten = phase.copy, s.state.unwritten
    if copy not in unwritten:
        s.log(EventKind.UNSAVED, reason)
    may_be_other = isinstance(copy.place, HeldBy) and s.state.ending is None
    if may_be_other and copies.nearby(s, copy):  # another node has it
        s.enter(Gathering(s.now))
        return
    if may_be_other and not phase.is_second_try:
        save(s, copy, phase.worker, not phase.as_checkpoint, is_second_try=True)
        return
    first, _ = unwritten.get(copy, (s.now, s.now))
    s.set(unwritten={**unwritten, copy: (first, s.now)})
    s.enter(Gathering(s.now))


def forget_memory_of(s: Step, node: str) -> None:
    """What was in a node's memory is lost."""
    s.set(
        snapshots={n: c for n, c in s.state.snapshots.items() if n != node},
        superseded=tuple(c for c in s.state.superseded if not _is_on(c, node)),
    )


def _is_on(copy: Copy, node: str) -> bool:
    return isinstance(copy.place, InMemory) and copy.place.node == node
