"""The control loop's decisions: `step(state, observation, config) -> (state, actions)`.

Pure: no clock, no I/O, no Ray. A generation runs until something stops it; every stop takes the
same path, whatever its cause: the ranks hold their state, the freshest is saved, and the next
generation starts from it on the workers that are left.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from fairseq_ray_plugin import journal
from fairseq_ray_plugin.options import ElasticConfig

START_PATIENCE_S = 10.0
"""How long workers that are ready wait for those still starting, before the first generation."""

SETTLE_S = 1.5
"""Newcomers within so long of each other make one resize; longer than a look for room takes."""

PLACEMENT_LIMIT_S = 120.0
"""A worker that is not ready after so long has no room in truth, or a broken machine."""

SILENCE_S = 1.0
"""A rank that has not answered a stop for so long goes without; it may come back later."""

GRACE_S = 60.0
"""How long a planned stop waits for the first rank to end the update it is in."""

FINISH_S = 30.0
"""How long rank 0, when it is done, waits for the ranks that are not."""

START_TRIES = 3
"""Workers in a row that may fail to start on a node before it is left out."""


class Phase(enum.Enum):
    GATHERING = "gathering workers"
    TRAINING = "training"
    STOPPING = "waiting for the ranks to hold their state"
    SAVING = "waiting for the freshest state to be saved"
    ENDED = "ended"


class Cause(enum.Enum):
    RESIZED = "RESIZED"
    """Workers that were not in the generation are ready."""

    LOST = "LOST"
    """A training process, a worker or a node went away."""

    FAILED = "FAILED"
    """The training code raised an exception."""

    INTERRUPTED = "INTERRUPTED"
    """The driver was told to end."""


class Standing(enum.Enum):
    STARTING = "being placed, or importing"
    READY = "has no rank to run, or one that holds its state"
    TRAINING = "runs a rank"
    FINISHED = "its rank came to the end of the training"
    SILENT = "did not answer; left out until it does"


@dataclasses.dataclass(frozen=True)
class Worker:
    node: str
    standing: Standing
    since: float
    """When it was placed or, once ready, became ready; seconds."""

    held: int | None = None
    """The update after which its stopped training process holds the state, if it does."""

    pid: int = 0
    """Of its training process."""


# What is observed


@dataclasses.dataclass(frozen=True)
class Ready:
    """A worker has imported everything and can start a rank."""

    worker: str


@dataclasses.dataclass(frozen=True)
class Gone:
    """A worker, or the node under it, is dead."""

    worker: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a rank of a generation says of itself, or its worker says of it."""

    worker: str
    generation: int
    kind: str
    """running, advanced, held, raised, ended, finished, saved, unsaved, checkpoint."""

    update: int | None = None
    text: str = ""
    """raised: traceback; ended, unsaved: reason; saved, checkpoint: path."""

    by_peer: bool = False
    """raised: only because another rank went away."""

    pid: int = 0


Event = Ready | Gone | Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    now: float
    """Seconds, monotonic."""

    room: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Node -> further workers that have room there now."""

    events: tuple[Event, ...] = ()
    signal: int | None = None
    """A signal that asks the driver to end."""


# What is to be done


@dataclasses.dataclass(frozen=True)
class Place:
    worker: str
    node: str


@dataclasses.dataclass(frozen=True)
class Remove:
    worker: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a generation's state comes from; without one, from where the user's options say."""

    path: str
    update: int | None
    node: str | None
    """The one node that has it; None: a checkpoint, in the save dir."""


@dataclasses.dataclass(frozen=True)
class Start:
    generation: int
    ranks: tuple[str, ...]
    source: Source | None


@dataclasses.dataclass(frozen=True)
class Hold:
    """Stop training, keeping the state: at the end of the update, or at once."""

    worker: str
    generation: int
    at_once: bool


@dataclasses.dataclass(frozen=True)
class Save:
    """Write the state that a worker holds; as the run's last checkpoint, or for the next start."""

    worker: str
    generation: int
    as_checkpoint: bool


@dataclasses.dataclass(frozen=True)
class Log:
    event: journal.Event


@dataclasses.dataclass(frozen=True)
class End:
    exit_code: int
    message: str


Action = Place | Remove | Start | Hold | Save | Log | End


@dataclasses.dataclass(frozen=True)
class Failure:
    cause: Cause
    text: str
    by_peer: bool = False


@dataclasses.dataclass(frozen=True)
class State:
    phase: Phase = Phase.GATHERING
    workers: Mapping[str, Worker] = dataclasses.field(default_factory=dict)
    num_placed: int = 0
    generation: int = 0
    ranks: tuple[str, ...] = ()
    """The generation's workers, by rank."""

    num_running: int = 0
    """Ranks whose training process has been started."""

    advanced: bool = False
    """The generation has completed an update."""

    update: int = 0
    """The most updates that any rank is known to have completed."""

    snapshot: Source | None = None
    """The last state saved at a stop; fresher than any checkpoint while its node lives."""

    checkpoint: Source | None = None
    """The last checkpoint that this run wrote."""

    saving_checkpoint: bool = False
    """The state under way to disk is to be the run's last checkpoint."""

    since: float = 0.0
    """When the phase began."""

    cause: Cause | None = None
    """Why the generation stops."""

    failures: tuple[Failure, ...] = ()
    """What went wrong in the generation, in the order it was heard."""

    at_once: bool = False
    """The ranks were told to hold at once."""

    strikes: tuple[tuple[int, Failure], ...] = ()
    """Failures since an update was last completed, each with the update it happened after."""

    signal: int | None = None
    start_failures: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Node -> why workers did not start there, since one last did."""

    waiting: str | None = None
    """What the log last said that training waits for."""


@dataclasses.dataclass
class _Step:
    """One step under way: the state as it becomes, and the actions so far."""

    state: State
    now: float
    config: ElasticConfig
    max_ranks: int | None
    actions: list[Action] = dataclasses.field(default_factory=list)
    workers: dict[str, Worker] = dataclasses.field(init=False)
    """The state's own, copied once a step: events come by the thousand."""

    def __post_init__(self) -> None:
        self.workers = dict(self.state.workers)
        self.set(workers=self.workers)

    def set(self, **changes: Any) -> None:
        self.state = dataclasses.replace(self.state, **changes)

    def set_worker(self, worker: str, **changes: Any) -> None:
        self.workers[worker] = dataclasses.replace(self.workers[worker], **changes)

    def with_standing(self, *standings: Standing) -> list[str]:
        return [name for name, w in self.state.workers.items() if w.standing in standings]

    def enter(self, phase: Phase) -> None:
        self.set(phase=phase, since=self.now)

    def log(self, kind: str, cause: str | None = None, **details: Any) -> None:
        state = self.state
        world_size = len(state.ranks)
        event = journal.Event(
            kind=kind,
            generation=state.generation,
            world_size=world_size,
            update=state.update,
            cause=cause,
            details=details,
        )
        self.actions.append(Log(event))

    def end(self, kind: str, exit_code: int, message: str) -> None:
        self.log(kind, message)
        self.actions.append(End(exit_code, message))
        self.enter(Phase.ENDED)


def step(
    state: State, observation: Observation, config: ElasticConfig, max_ranks: int | None = None
) -> tuple[State, list[Action]]:
    """What follows from an observation.

    Args:
        max_ranks: more ranks than this would have nothing to do (mini-batches in an update), or
            are not wanted; None: no limit.
    """
    s = _Step(state, observation.now, config, max_ranks)
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
                _stop(s)
            case Phase.SAVING | Phase.ENDED:
                pass
        if s.state.phase is before:
            return s.state, s.actions


def _hear(s: _Step, event: Event) -> None:
    if event.worker not in s.state.workers:
        return
    match event:
        case Ready(worker):
            s.set_worker(worker, standing=Standing.READY, since=s.now)
            node = s.state.workers[worker].node
            s.set(start_failures={**s.state.start_failures, node: ()})
        case Gone(worker, reason):
            gone = s.state.workers[worker]
            if gone.standing is Standing.STARTING:
                reasons = (*s.state.start_failures.get(gone.node, ()), reason)
                s.set(start_failures={**s.state.start_failures, gone.node: reasons})
                s.log("unfit", f"a worker did not start on {gone.node}: {reason}")
                s.set(since=s.now)
            name = _rank(s, worker)
            _forget(s, worker)
            if worker in s.state.ranks:
                _fail(s, Failure(Cause.LOST, f"{name}: {reason}"))
                _unsaved(s, worker)
        case Report() if event.generation == s.state.generation:
            _hear_report(s, event)
        case Report(kind="held" | "ended" | "raised"):
            # a rank of an earlier generation that had been given up: its worker is of use again
            if s.state.workers[event.worker].standing is Standing.SILENT:
                s.set_worker(event.worker, standing=Standing.READY, since=s.now, held=None)


_TELL_UPDATE = ("advanced", "checkpoint", "held", "raised", "finished")


def _hear_report(s: _Step, report: Report) -> None:
    worker = report.worker
    if report.update is not None and report.kind in _TELL_UPDATE:
        s.set(update=max(s.state.update, report.update))
    match report.kind:
        case "running":
            s.set_worker(worker, pid=report.pid)
            s.set(num_running=s.state.num_running + 1)
            if s.state.num_running == len(s.state.ranks):
                ranks = [
                    {"rank": rank, "node": s.workers[name].node, "pid": s.workers[name].pid}
                    for rank, name in enumerate(s.state.ranks)
                    if name in s.state.workers
                ]
                s.log("started", ranks=ranks)
        case "advanced":
            if s.state.strikes and (report.update or 0) > s.state.strikes[0][0]:
                s.set(strikes=())
            if not s.state.advanced:
                s.set(advanced=True)
                s.log("advanced")
        case "checkpoint":
            s.set(checkpoint=Source(report.text, report.update, None))
            s.log("checkpoint", path=report.text)
        case "held":
            s.set_worker(worker, standing=Standing.READY, held=report.update)
        case "raised":
            s.set_worker(worker, standing=Standing.READY, held=report.update)
            text = f"{_rank(s, worker)} raised:\n{report.text}"
            _fail(s, Failure(Cause.FAILED, text, report.by_peer))
        case "ended":
            s.set_worker(worker, standing=Standing.READY, held=None)
            text = f"training process of {_rank(s, worker)} {report.text}"
            _fail(s, Failure(Cause.LOST, text))
            _unsaved(s, worker)
        case "finished":
            s.set_worker(worker, standing=Standing.FINISHED, since=s.now, held=report.update)
        case "saved" if s.state.phase is Phase.SAVING:
            _saved(s, Source(report.text, report.update, s.state.workers[worker].node))
        case "unsaved":
            s.log("unsaved", report.text)
            _unsaved(s, worker)


def _rank(s: _Step, worker: str) -> str:
    state = s.state
    rank = state.ranks.index(worker) if worker in state.ranks else None
    node = state.workers[worker].node
    return f"rank {rank} (on node {node[:8]})"


def _forget(s: _Step, worker: str) -> None:
    del s.workers[worker]


def _fail(s: _Step, failure: Failure) -> None:
    s.set(failures=(*s.state.failures, failure))
    if s.state.phase is Phase.TRAINING:
        _begin_stop(s, failure.cause, at_once=True)


def _place(s: _Step, room: Mapping[str, int]) -> None:
    """Put a worker wherever there is room, and take away those that never got ready."""
    for name in s.with_standing(Standing.STARTING):
        if s.now - s.state.workers[name].since > PLACEMENT_LIMIT_S:
            s.actions.append(Remove(name))
            s.log("removed", f"worker on {s.state.workers[name].node} did not start")
            _forget(s, name)
    for node, slots in sorted(room.items()):
        for _ in range(slots):
            if s.max_ranks is not None and len(s.state.workers) >= s.max_ranks:
                return
            if len(s.state.start_failures.get(node, ())) >= START_TRIES:
                break
            name = f"worker-{s.state.num_placed}"
            s.workers[name] = Worker(node, Standing.STARTING, s.now)
            s.set(num_placed=s.state.num_placed + 1)
            s.actions.append(Place(name, node))


def _gather(s: _Step) -> None:
    """Start the next generation as soon as there are workers enough."""
    state = s.state
    if state.signal is not None:
        _save_freshest(s)
        return
    ready = s.with_standing(Standing.READY)
    starting = s.with_standing(Standing.STARTING)
    if len(ready) < s.config.min_workers:
        waiting = f"{s.config.min_workers} workers, {len(ready)} ready, {len(starting)} starting"
        if waiting != state.waiting:
            s.set(waiting=waiting)
            s.log("waiting", waiting)
        tried = state.start_failures.values()
        if not state.workers and tried and all(len(r) >= START_TRIES for r in tried):
            node, reasons = next(iter(state.start_failures.items()))
            s.end("failed", 1, f"workers cannot start; on {node}: {reasons[0]}")
        return
    if state.generation == 0 and (starting or s.now - state.since < SETTLE_S):
        # others are on their way, or what failed to start may yet be replaced
        first = min(state.workers[name].since for name in ready)
        if s.now - first < START_PATIENCE_S:
            return
    source = state.snapshot
    if source and all(state.workers[name].node != source.node for name in ready):
        if any(state.workers[name].node == source.node for name in starting):
            return  # a fresh worker on the node that has the state
        source = None
    source = source or state.checkpoint
    ranks = _rank_order(s, ready, source)[: s.max_ranks]
    for name in ranks:
        s.set_worker(name, standing=Standing.TRAINING, held=None)
    s.set(
        generation=state.generation + 1,
        ranks=ranks,
        num_running=0,
        advanced=False,
        failures=(),
        cause=None,
        waiting=None,
        at_once=False,
    )
    s.actions.append(Start(s.state.generation, ranks, source))
    s.enter(Phase.TRAINING)


def _rank_order(s: _Step, names: list[str], source: Source | None) -> tuple[str, ...]:
    """By node, the one that has the state first: rank 0 loads it, and saves checkpoints."""
    workers = s.state.workers
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


def _train(s: _Step) -> None:
    state = s.state
    done = s.with_standing(Standing.FINISHED)
    if done:
        # rank 0 writes the last checkpoint: nothing is finished before it is
        first = state.workers.get(state.ranks[0])
        if state.ranks[0] in done and (
            len(done) == len(state.ranks) or (first and s.now - first.since > FINISH_S)
        ):
            s.end("finished", 0, f"training finished after {state.update} updates")
        return
    if state.signal is not None:
        _begin_stop(s, Cause.INTERRUPTED, at_once=False)
        return
    if not state.advanced or any(s.with_standing(Standing.STARTING)):
        return
    newcomers = [name for name in s.with_standing(Standing.READY) if name not in state.ranks]
    if s.max_ranks is not None:
        newcomers = newcomers[: max(0, s.max_ranks - len(state.ranks))]
    if newcomers and s.now - max(state.workers[n].since for n in newcomers) >= SETTLE_S:
        _begin_stop(s, Cause.RESIZED, at_once=False)


def _begin_stop(s: _Step, cause: Cause, at_once: bool) -> None:
    s.set(cause=cause)
    s.enter(Phase.STOPPING)
    _hold_the_rest(s, at_once)


def _hold_the_rest(s: _Step, at_once: bool) -> None:
    s.set(at_once=at_once, since=s.now)
    for name in s.state.ranks:
        worker = s.state.workers.get(name)
        if worker and worker.standing is Standing.TRAINING:
            s.actions.append(Hold(name, s.state.generation, at_once))


def _stop(s: _Step) -> None:
    """Go on once every rank has answered, is dead, or has been silent for too long."""
    state = s.state
    open_ranks = [
        name
        for name in state.ranks
        if name in state.workers and state.workers[name].standing is Standing.TRAINING
    ]
    if open_ranks and not state.at_once:
        # one rank at rest means that the others wait for it in a collective
        answered = len(open_ranks) < sum(name in state.workers for name in state.ranks)
        if answered or state.failures or s.now - state.since > GRACE_S:
            _hold_the_rest(s, at_once=True)
        return
    if open_ranks and s.now - state.since <= SILENCE_S:
        return
    for name in open_ranks:
        s.set_worker(name, standing=Standing.SILENT)
        failure = Failure(Cause.LOST, f"{_rank(s, name)} does not answer")
        s.set(failures=(*s.state.failures, failure))
    state = s.state
    finished = [n for n in s.with_standing(Standing.FINISHED) if n in state.ranks]
    if state.ranks[0] in finished:
        s.end("finished", 0, f"training finished after {state.update} updates")
        return
    for name in finished:  # what they hold is the last update, with rank 0's checkpoint to come
        s.set_worker(name, standing=Standing.READY)
    first = _first_cause(state)
    s.log("stopped", _describe(state.cause, first))
    if first is not None and state.signal is None and _give_up(s, first):
        return
    _save_freshest(s)


def _first_cause(state: State) -> Failure | None:
    """What went wrong first: a rank that only lost its peers is an effect, not the cause."""
    causes = [f for f in state.failures if not f.by_peer]
    return next(iter(causes or state.failures), None)


def _describe(cause: Cause | None, failure: Failure | None) -> str:
    if failure is not None:
        return f"{failure.cause.value}: {failure.text}"
    return cause.value if cause else ""


def _give_up(s: _Step, failure: Failure) -> bool:
    """End the run where another try would only fail again."""
    strikes = (*s.state.strikes, (s.state.update, failure))
    s.set(strikes=strikes)
    update, first = strikes[0]
    if sum(f.cause is Cause.FAILED and not f.by_peer for _, f in strikes) >= 2:
        message = f"training failed twice after update {update}, {first.text}"
    elif len(strikes) >= s.config.max_failures:
        message = (
            f"{len(strikes)} failures in a row after update {update} (--ray-max-failures "
            f"{s.config.max_failures}); the first: {_describe(None, first)}"
        )
    else:
        return False
    s.end("failed", 1, message)
    return True


def _save_freshest(s: _Step) -> None:
    state = s.state
    held = {
        name: state.workers[name].held
        for name in state.ranks
        if name in state.workers and state.workers[name].held is not None
    }
    freshest = max((update for update in held.values() if update is not None), default=None)
    to_end = state.signal is not None
    reusable = (
        state.snapshot is not None
        and state.snapshot.update == freshest
        and any(w.node == state.snapshot.node for w in state.workers.values())
    )
    if freshest is None or (reusable and not to_end):
        if to_end:
            kept = f"{state.checkpoint.path} is newest" if state.checkpoint else "nothing to save"
            s.end("interrupted", 128 + (state.signal or 0), f"interrupted: {kept}")
        else:
            s.enter(Phase.GATHERING)
        return
    # the lowest rank: it has been saving the checkpoints, where its node alone sees the save dir
    holder = next(name for name, update in held.items() if update == freshest)
    s.set(saving_checkpoint=to_end)
    s.actions.append(Save(holder, state.generation, as_checkpoint=to_end))
    s.enter(Phase.SAVING)


def _saved(s: _Step, source: Source) -> None:
    state = s.state
    if state.saving_checkpoint:
        message = f"interrupted after update {state.update}; saved {source.path}"
        s.end("interrupted", 128 + (state.signal or 0), message)
    else:
        s.set(snapshot=source)
        s.enter(Phase.GATHERING)


def _unsaved(s: _Step, worker: str) -> None:
    """A state is lost: the next freshest serves."""
    if worker in s.state.workers:
        s.set_worker(worker, held=None)
    if s.state.phase is Phase.SAVING:
        _save_freshest(s)
