"""The control loop's decisions: `step(state, observation, config) -> (state, actions)`.

Pure: no clock, no I/O, no Ray. A generation runs until something stops it; every stop takes the
same path, whatever its cause: the ranks hold their state, the freshest is saved (stopping.py),
and the next generation starts from it on the workers that are left (membership.py).
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping

from fairseq_ray_plugin.activity import Activity
from fairseq_ray_plugin.control import membership, own_copies, standby, stopping
from fairseq_ray_plugin.control.failures import Cause, Failure
from fairseq_ray_plugin.control.state import (
    UNHEARD_S,
    Action,
    Ending,
    Gathering,
    Over,
    Saving,
    Standing,
    State,
    Step,
    Stopping,
    Training,
)
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Advanced,
    Blocked,
    Checkpointed,
    Copy,
    Delayed,
    Doing,
    Ended,
    Event,
    Finished,
    FromRank,
    Gone,
    Heard,
    Held,
    InMemory,
    InSaveDir,
    Missing,
    NoSnapshot,
    Notice,
    Observation,
    OutOfMemory,
    Publish,
    Raised,
    RankMessage,
    Ready,
    Refusal,
    Running,
    Save,
    Saved,
    Snapshot,
    Stacks,
    StandBy,
    Start,
    Unfit,
    Unreached,
    Unsaved,
)
from fairseq_ray_plugin.report.journal import EventKind

FINISH_S = 30.0
"""How long rank 0, when it is done, waits for the ranks that are not."""

DEFECT = 70
"""The exit code of a run that ends because the loop itself is wrong (EX_SOFTWARE)."""

HEAD_LIMIT_S = 20.0
"""A cluster whose head does not answer for so long has none; Ray ends its nodes after a minute."""

HEAD_MARGIN_S = 15.0
"""A head that may come back is given up so long before the nodes give it up, for the saving."""


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
    _check_for_end(s, observation)
    if s.state.ending is None and not isinstance(s.state.phase, Over):
        membership.place(s, observation.room)
    membership.ask_the_silent(s)
    # a phase that ends may let the next one end too: a stop with every answer in is one step
    while True:
        before = s.state.phase
        match before:
            case Gathering():
                membership.gather(s, before)
            case Training():
                _train(s)
            case Stopping():
                stopping.stop(s, before)
            case Saving():
                stopping.check_saving(s, before)
        if isinstance(s.state.phase, type(before)):
            return s.done(), s.actions


def rescue(state: State, now: float, error: str) -> State:
    """After an exception in `step`, our own defect: what is held is saved, and the run ends."""
    if isinstance(state.phase, Training):
        asked = now - stopping.ASK_AGAIN_S - 1  # the next step asks
        state = dataclasses.replace(
            state, phase=Stopping(now, Cause.INTERRUPTED, at_once=True, asked=asked)
        )
    message = f"a defect in the control loop of fairseq_ray_plugin: {error}"
    return dataclasses.replace(state, ending=Ending(EventKind.FAILED, DEFECT, message))


def _check_for_end(s: Step, observation: Observation) -> None:
    """Whether something outside training wants the run to end."""
    successor, ending = observation.save_dir_lost, s.state.ending
    if successor is not None and (ending is None or ending.saves):
        message = (
            f"--save-dir was taken over by {successor}, which took this run for dead: nothing more "
            "is written there"
        )
        s.end_soon(Ending(EventKind.FAILED, 1, message, saves=False))
    number = observation.signal
    if number is not None and s.state.ending is None:
        message = f"interrupted by {signal.Signals(number).name} after update {s.state.update}"
        s.end_soon(Ending(EventKind.INTERRUPTED, 128 + number, message))
        return
    head_limit = max(HEAD_LIMIT_S, observation.nodes_outlast_head_s - HEAD_MARGIN_S)
    if observation.head_silent_s > head_limit and s.state.ending is None:
        message = (
            f"Ray's head has not answered for {head_limit:.0f} s: start Ray again, and the same "
            "command goes on"
        )
        s.end_soon(Ending(EventKind.FAILED, 1, message))


def _leave(s: Step, node: str, reason: str, deadline: float) -> None:
    if node not in s.state.leaving:
        s.set(leaving={**s.state.leaving, node: deadline})
        s.log(EventKind.NOTICE, f"node {node[:8]} goes in {deadline - s.now:.0f} s: {reason}")


def _hear(s: Step, event: Event) -> None:
    if event.worker not in s.workers:
        return
    worker = s.workers[event.worker]
    match event:
        case Heard(name, FromRank(generation, says) as envelope):  # first: they come by thousands
            if standby.hear(s, name, envelope):
                return
            if generation == s.state.generation and s.is_in_generation(name):
                _hear_of_progress(s, name, says)
            _hear_rank(s, name, generation, says)
        case Gone(name, reason, with_node):
            _lose(s, name, reason, with_node)
        case Unreached(name, order, reason):
            _not_told(s, name, order, reason)
        case Heard(name, Ready(gpu)):
            s.set_worker(name, standing=Standing.READY, since=s.now, gpu=gpu)
            s.nodes[worker.node] = s.node(worker.node).started()
        case Heard(name, Unfit(reason)):
            _lose(s, name, reason, with_node=False)
        case Heard(_, Notice(reason, left_s)):
            _leave(s, worker.node, reason, s.now + left_s)


def _lose(s: Step, name: str, reason: str, with_node: bool) -> None:
    """A worker is no more."""
    worker = s.workers[name]
    record = s.node(worker.node)
    if with_node:
        s.nodes[worker.node] = record.dead()
        stopping.forget_memory_of(s, worker.node)
    elif worker.standing is Standing.STARTING:
        s.nodes[worker.node] = record.not_started(reason, s.now)
        s.log(EventKind.UNFIT, f"a worker did not start on {worker.node}: {reason}")
    if isinstance(s.state.phase, Gathering):
        s.enter(Gathering(s.now))
    text = f"{s.describe(name)}: {reason}"
    was_in_generation = s.is_in_generation(name)
    del s.workers[name]
    if s.state.standby is not None and name in s.state.standby.ranks:
        standby.stand_down(s)
    if was_in_generation:
        stopping.fail(s, Failure(Cause.LOST, text, worker.node, with_node=with_node))


def _not_told(s: Step, name: str, order: object, reason: str) -> None:
    """An order did not arrive; who does not answer is asked again, or left out."""
    match order:
        case Start(generation) if generation == s.state.generation:
            text = f"{s.describe(name)} could not be told to start: {reason}"
            stopping.fail(s, Failure(Cause.LOST, text, with_node=True))
        case StandBy(generation) if s.state.standby and s.state.standby.generation == generation:
            standby.lose(s, f"which could not be told to be made: {reason}")
        case Save() | Publish():
            phase = s.state.phase
            if name in s.state.putting_by:
                s.set(putting_by=s.state.putting_by - {name})
            elif isinstance(phase, Saving) and phase.worker == name:
                stopping.lose_writer(s, phase)


def _hear_of_progress(s: Step, name: str, says: RankMessage) -> None:
    """What a rank of the newest generation says of it, whatever its worker is asked to do."""
    state = s.state
    if isinstance(says, Advanced | Checkpointed | Held | Raised | Finished) and says.update:
        strikes = state.strikes.after(says.update)
        if says.update > state.update or strikes is not state.strikes:
            s.set(update=max(state.update, says.update), strikes=strikes)
    match says:
        case Running(pid):
            s.set_worker(name, pid=pid)
            if state.putting_by:  # the rank before is no more
                s.set(putting_by=state.putting_by - {name})
            s.num_running += 1
            if s.num_running == len(state.ranks):
                there = [(rank, n) for rank, n in enumerate(state.ranks) if n in s.workers]
                ranks = [
                    {"rank": rank, "node": s.workers[n].node, "pid": s.workers[n].pid}
                    for rank, n in there
                ]
                s.end_step("fork")
                s.log(EventKind.STARTED, ranks=ranks)
        case Advanced(_, at, steps):
            if name == state.ranks[0]:
                s.set(pace=state.pace.sign(s.now, Activity.TRAINING, at))
            if not state.advanced:
                s.set(advanced=True)
                if state.stopped_at is not None:
                    s.set(stall_s=s.now - state.stopped_at, stopped_at=None)
                s.log(EventKind.ADVANCED, steps=_rounded({**state.steps, **dict(steps)}))
                s.set(steps={}, step_ended_at=None)
                own_copies.drop_all_but(s, membership.keepers(s))
        case Doing(activity, at) if name == state.ranks[0]:
            s.set(pace=state.pace.sign(s.now, activity, at))
        case Stacks(text):
            rank = s.workers[name].rank
            s.log(EventKind.STACKS, f"what {s.describe(name)} was doing", rank=rank, stacks=text)


def _rounded(steps: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in steps.items()}


def _hear_rank(s: Step, name: str, generation: int, says: RankMessage) -> None:
    worker = s.workers[name]
    node, phase = worker.node, s.state.phase
    match says:
        case Held(update, asked) if (
            asked == s.state.generation
            # the answer of a machine that was cut off: it was told of no generation since
            or (worker.standing is Standing.SILENT and generation == worker.generation)
        ):
            s.set_worker(
                name, standing=Standing.READY, since=s.now, held=update, generation=generation
            )
            if isinstance(phase, Training) and s.is_in_generation(name):
                # this loop stood still for so long that its workers saved what they had
                stopping.begin_stop(s, Cause.TAKEN_OVER, at_once=True)
        case Saved(update, path):
            stopping.saved(s, name, update, path)
        case Unsaved(reason):
            stopping.unsaved(s, name, reason)
        case Snapshot(update, path):
            s.set(told_of_full_memory=False)
            stopping.keep(s, name, Copy(update, InMemory(node, path)))
        case NoSnapshot(reason) if not s.state.told_of_full_memory:
            s.set(told_of_full_memory=True)
            s.log(EventKind.UNSAVED, reason)
        case OutOfMemory(update, dropped):
            what = "went on without a mini-batch that was too large for its GPU"
            if not dropped:
                what = "tried a mini-batch again that was too large for its GPU"
            text = f"{s.describe(name)} {what}"
            s.log(EventKind.OUT_OF_MEMORY, text, update, node=node, dropped=dropped)
        case Checkpointed(update, path, seconds, num_bytes):
            written = {"seconds": seconds, "bytes": num_bytes} if seconds is not None else {}
            stopping.is_checkpoint(s, Copy(update, InSaveDir(path)), **written)
        case Delayed():
            stopping.is_delayed(s, says)
        case Missing(path) if generation == worker.generation:
            # it does not begin, and what its worker's older rank holds is asked for with the rest
            s.set(
                snapshots={
                    n: c for n, c in s.state.snapshots.items() if c.place != InMemory(n, path)
                }
            )
            text = f"{s.describe(name)}: the snapshot {path} is gone"
            stopping.fail(s, Failure(Cause.LOST, text, node))
        case Raised() | Refusal() | Ended() | Blocked() | Finished() if (
            generation == worker.generation
        ):
            _hear_of_end(s, name, says)


def _hear_of_end(s: Step, name: str, says: RankMessage) -> None:
    """The rank that a worker runs trains no more."""
    worker = s.workers[name]
    standing = Standing.FINISHED if isinstance(says, Finished) else Standing.READY
    held = says.update if isinstance(says, Raised | Finished) else None
    s.set_worker(name, standing=standing, since=s.now, held=held)
    if isinstance(says, Ended) and s.state.putting_by:
        s.set(putting_by=s.state.putting_by - {name})
    if isinstance(says, Blocked):
        stopping.leave_out(s, worker.node, worker.gpu, says.reason)
    if not s.is_in_generation(name):
        return
    node, gpu = worker.node, worker.gpu
    match says:
        case Raised() if says.error.fault.is_peers and any(f.by_peer for f in s.failures):
            pass  # the others only say the same, by the thousand
        case Raised(_, error):
            said = error.message.partition("\n")[0]
            text = f"{s.describe(name)} raised {error.kind}: {said}"
            by_peer = error.fault.is_peers
            stopping.fail(s, Failure(Cause.FAILED, text, node, gpu, by_peer=by_peer, error=error))
        case Ended(how, crashed):
            text = f"training process of {s.describe(name)} {how}"
            stopping.fail(s, Failure(Cause.LOST, text, node, gpu, crashed))
        case Blocked(reason):
            text = f"{s.describe(name)} cannot begin: {reason}"
            stopping.fail(s, Failure(Cause.LOST, text, node, gpu, with_node=True))
        case Refusal(reason, spoiled) if s.state.ending is None:
            s.end_soon(Ending(EventKind.FAILED, 1, reason, saves=not spoiled))


def _train(s: Step) -> None:
    state = s.state
    done = s.of_generation(Standing.FINISHED)
    if done:
        # rank 0 writes the last checkpoint: nothing is finished before it is
        first = s.workers.get(state.ranks[0])
        if state.ranks[0] in done and (
            len(done) == len(state.ranks) or (first and s.now - first.since > FINISH_S)
        ):
            if stopping.finish(s):
                return
            state = s.state
    if state.ending is not None:
        # where one rank has come to rest already, the others wait for it
        at_once = len(s.of_generation(Standing.TRAINING)) < len(state.ranks)
        stopping.begin_stop(s, Cause.INTERRUPTED, at_once)
        return
    _watch(s)
    if not isinstance(s.state.phase, Training) or done:
        return
    if state.leaving and membership.leaves(s):
        stopping.begin_stop(s, Cause.PREEMPTED, at_once=False)
    elif state.advanced and membership.grows(s):
        stopping.begin_stop(s, Cause.RESIZED, at_once=False)


def _watch(s: Step) -> None:
    """Whether the ranks are still there, and getting on."""
    state = s.state
    unheard = {node for node in s.heard if s.is_unheard(node, UNHEARD_S)}
    for name in state.ranks if unheard else ():
        if name in s.workers and s.workers[name].node in unheard:
            text = f"{s.describe(name)}: its node was not heard of for {UNHEARD_S:.0f} s"
            stopping.fail(s, Failure(Cause.LOST, text, s.workers[name].node, with_node=True))
            return
    limit = state.pace.limit(s.config.hang_timeout, state.strikes.count(Cause.HUNG))
    if s.now - state.pace.since > limit:
        doing = state.pace.doing.value
        text = f"no progress for {limit:.0f} s while {doing} (--ray-hang-timeout)"
        stopping.fail(s, Failure(Cause.HUNG, text))
