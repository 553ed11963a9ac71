"""What the control loop remembers between steps, and a step under way."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fairseq_ray_plugin.control.failures import Cause, Failure, Strikes
from fairseq_ray_plugin.control.hangs import Pace
from fairseq_ray_plugin.control.nodes import NodeRecord
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import ClusterAction, Copy, Delayed, Order, Remove, Tell
from fairseq_ray_plugin.report.journal import Event, EventKind

if TYPE_CHECKING:
    from fairseq_ray_plugin.control.standby import Standby
Value = TypeVar("Value")

UNHEARD_S = 3.0
"""A node not heard of for so long, though it speaks twice a second, is cut off or stopped."""


# Actions that are the driver's own


@dataclasses.dataclass(frozen=True)
class Log:
    event: Event


@dataclasses.dataclass(frozen=True)
class End:
    exit_code: int
    message: str


Action = ClusterAction | Log | End


# Phases


@dataclasses.dataclass(frozen=True)
class Gathering:
    """There is no generation, or one at rest: the next begins when there are workers enough."""

    since: float


@dataclasses.dataclass(frozen=True)
class Training:
    since: float


@dataclasses.dataclass(frozen=True)
class Stopping:
    """The ranks come to rest, each holding its state."""

    since: float
    """When they were asked, first or, at once, again."""

    cause: Cause
    at_once: bool
    asked: float
    """When those that have not answered were last asked."""


@dataclasses.dataclass(frozen=True)
class Saving:
    """The freshest copy becomes a file."""

    since: float
    copy: Copy
    worker: str
    """Who writes it."""

    as_checkpoint: bool
    is_second_try: bool = False
    """It could not be written as the other kind of file."""

    written_at: float | None = None
    """When it was, where other nodes' own copies are waited for."""


@dataclasses.dataclass(frozen=True)
class Over:
    pass


Phase = Gathering | Training | Stopping | Saving | Over


@dataclasses.dataclass(frozen=True)
class Ending:
    """The run is to end, when what is held has been saved."""

    kind: EventKind
    exit_code: int
    message: str
    saves: bool = True
    """A checkpoint is made of the freshest copy, if it is not one."""


class Standing(enum.Enum):
    STARTING = "being placed, or importing"
    READY = "has no rank to run, or one that is at rest"
    TRAINING = "runs a rank"
    FINISHED = "its rank came to the end of the training"
    SILENT = "did not answer; left out until it does"


@dataclasses.dataclass(frozen=True)
class Worker:
    node: str
    standing: Standing
    since: float
    """When it was placed, became ready, or became silent; seconds."""

    generation: int = 0
    """That of its rank."""

    rank: int = -1
    held: int | None = None
    """The update after which its rank holds the state, if it does."""

    pid: int = 0
    """Of its training process; 0: not forked yet."""

    gpu: str = ""
    """UUID of its GPU, where it has one and that is known."""


class Roster(dict[str, Worker]):
    """Workers by name, and their names by standing: nothing looks through ten thousand for one."""

    def __init__(self, workers: Roster | None = None) -> None:
        super().__init__(workers or {})
        self.names: dict[Standing, dict[str, None]] = {standing: {} for standing in Standing}
        if workers is not None:
            self.names = {standing: dict(names) for standing, names in workers.names.items()}

    def __setitem__(self, name: str, worker: Worker) -> None:
        before = self.get(name)
        if before is None or before.standing is not worker.standing:
            if before is not None:
                del self.names[before.standing][name]
            self.names[worker.standing][name] = None
        super().__setitem__(name, worker)

    def __delitem__(self, name: str) -> None:
        del self.names[self[name].standing][name]
        super().__delitem__(name)


@dataclasses.dataclass(frozen=True)
class State:
    phase: Phase = Gathering(0.0)
    workers: Roster = dataclasses.field(default_factory=Roster)
    num_placed: int = 0
    nodes: Mapping[str, NodeRecord] = dataclasses.field(default_factory=dict)
    gpus: Mapping[str, NodeRecord] = dataclasses.field(default_factory=dict)
    """By UUID; those that have failed."""

    leaving: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Node that will be taken away -> its deadline."""

    ending: Ending | None = None
    asked_silent: float = 0.0
    """When workers that are silent were last asked whether they are back."""

    waiting: str | None = None
    """What the log last said that training waits for."""

    delayed: Delayed | None = None
    """The newest checkpoint that could not be written, if none after it has been."""

    told_of_full_memory: bool = False
    """The log has said that snapshots find no room, since the last that did."""

    told_of_spare_room: bool = False
    """The log has said that there is room for more workers than have something to do."""

    # the state of training

    update: int = 0
    """The most updates that any rank is known to have completed."""

    snapshots: Mapping[str, Copy] = dataclasses.field(default_factory=dict)
    """Node -> the newest state in its memory."""

    superseded: tuple[Copy, ...] = ()
    """Snapshots that are to go as soon as no generation is starting from them."""

    putting_by: frozenset[str] = frozenset()
    """Workers asked to write the state to their own nodes' memory that have not answered."""

    unwritten: Mapping[Copy, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """What could not be written, for want of room -> when, first and last."""

    checkpoint: Copy | None = None
    """The last checkpoint that this run wrote."""

    # the generation

    generation: int = 0
    ranks: tuple[str, ...] = ()
    """The generation's workers, by rank."""

    source: Copy | None = None
    """What it went on from."""

    newest: int = 0
    """The newest that ranks were made for, if it is not this one."""

    standby: Standby | None = None
    nearby: Mapping[str, Copy] = dataclasses.field(default_factory=dict)
    """Node -> the same in its own memory, from where its ranks read what is alike."""

    num_running: int = 0
    """Ranks whose training process has been started."""

    advanced: bool = False
    """It has completed an update."""

    pace: Pace = Pace()
    failures: tuple[Failure, ...] = ()
    """What went wrong in it, in the order it was heard."""

    # earlier generations

    strikes: Strikes = Strikes()
    stopped_at: float | None = None
    """When the last stop began that no update followed yet."""

    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What has been done since then to go on, in order, and the seconds of each."""

    step_ended_at: float | None = None
    """When the last of them ended."""

    stall_s: float = 0.0
    """What the last stop cost, up to the end of the next update."""

    losses: tuple[float, ...] = ()
    """When the last few stops were that took something away."""


_GOOD = NodeRecord()


def _replaced(value: Value, changes: Mapping[str, Any]) -> Value:
    """As dataclasses.replace, in a tenth of the time: events come by the thousand."""
    new = object.__new__(type(value))
    new.__dict__.update(value.__dict__, **changes)
    return new


@dataclasses.dataclass
class Step:
    """One step under way: the state as it becomes, and the actions so far."""

    state: State
    now: float
    config: ElasticConfig
    max_ranks: int | None
    heard: Mapping[str, float]
    actions: list[Action] = dataclasses.field(default_factory=list)
    # the state's own, copied once a step: events come by the thousand
    workers: Roster = dataclasses.field(init=False)
    nodes: dict[str, NodeRecord] = dataclasses.field(init=False)
    failures: list[Failure] = dataclasses.field(init=False)
    num_running: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.workers = Roster(self.state.workers)
        self.nodes = dict(self.state.nodes)
        self.failures = list(self.state.failures)
        self.num_running = self.state.num_running
        self.set(workers=self.workers, nodes=self.nodes)

    def done(self) -> State:
        """The state after this step."""
        self.set(failures=tuple(self.failures), num_running=self.num_running)
        return self.state

    def set(self, **changes: Any) -> None:
        self.state = _replaced(self.state, changes)

    def set_worker(self, worker: str, **changes: Any) -> None:
        self.workers[worker] = _replaced(self.workers[worker], changes)

    def with_standing(self, standing: Standing) -> list[str]:
        return list(self.workers.names[standing])

    def is_in_generation(self, worker: str) -> bool:
        """Whether it runs a rank of the newest generation, or was told to."""
        there = self.workers.get(worker)
        ranks = self.state.ranks
        return there is not None and 0 <= there.rank < len(ranks) and ranks[there.rank] == worker

    def of_generation(self, standing: Standing) -> list[str]:
        """The newest generation's workers that stand so, by rank."""
        names = self.workers.names[standing]
        return [name for name in self.state.ranks if name in names] if names else []

    def usable(self) -> list[str]:
        """Workers that could run a rank in a generation that starts now."""
        nodes: dict[str, bool] = {}
        names = []
        all_fit = not self.state.gpus
        for name in self.workers.names[Standing.READY]:
            node = self.workers[name].node
            if node not in nodes:
                nodes[node] = self.node_stays(node) and not self.is_unheard(node, UNHEARD_S)
            if nodes[node] and (all_fit or self.gpu_is_fit(name)):
                names.append(name)
        return names

    def stays(self, worker: str) -> bool:
        """Whether the node under a worker is of use, and not about to go."""
        return self.node_stays(self.workers[worker].node)

    def node_stays(self, node: str) -> bool:
        if node in self.state.leaving or not self.node(node).is_usable(self.now):
            return False
        return not self.state.gpus or self._has_fit_gpu(node)

    def _has_fit_gpu(self, node: str) -> bool:
        """Whether not all the ranks that could run there would do so on GPUs that are left out."""
        away = (Standing.STARTING, Standing.SILENT)
        there = [n for n, w in self.workers.items() if w.node == node and w.standing not in away]
        return not there or any(map(self.gpu_is_fit, there))

    def gpu_is_fit(self, worker: str) -> bool:
        """Whether its GPU is not left out."""
        return self.gpu(self.workers[worker].gpu).is_usable(self.now)

    def gpu(self, gpu: str) -> NodeRecord:
        return self.state.gpus.get(gpu, _GOOD)

    def node(self, node: str) -> NodeRecord:
        return self.nodes.get(node, _GOOD)

    def is_unheard(self, node: str, limit_s: float) -> bool:
        return self.now - self.heard.get(node, self.now) > limit_s

    def describe(self, worker: str) -> str:
        """A worker's rank and node, for people."""
        there = self.workers[worker]
        return f"rank {there.rank} (on node {there.node[:8]})"

    def end_step(self, name: str) -> None:
        """All since the last one's end, on the way to the next update, was this step."""
        began = self.state.step_ended_at
        steps = self.state.steps
        if began is not None:
            steps = {**steps, name: steps.get(name, 0.0) + self.now - began}
        self.set(steps=steps, step_ended_at=self.now)

    def end_soon(self, ending: Ending) -> None:
        """The run ends when what is held has been saved; whatever could not be is tried again."""
        self.set(ending=ending, unwritten={})

    def enter(self, phase: Phase) -> None:
        self.set(phase=phase)

    def tell(self, workers: Iterable[str], order: Order) -> None:
        self.actions += [Tell(worker, order) for worker in workers]

    def remove(self, worker: str) -> None:
        self.actions.append(Remove(worker))
        del self.workers[worker]

    def log(
        self,
        kind: EventKind,
        cause: str | None = None,
        update: int | None = None,
        **details: Any,
    ) -> None:
        """An event, of the update that training is at where no other is named."""
        state = self.state
        event = Event(
            kind=kind,
            generation=state.generation,
            world_size=len(state.ranks),
            update=state.update if update is None else update,
            cause=cause,
            details=details,
        )
        self.actions.append(Log(event))

    def end(self, ending: Ending, outcome: str = "") -> None:
        separator = "\n" if "\n" in ending.message else "; "
        message = separator.join(filter(None, (ending.message, outcome)))
        self.log(ending.kind, message, exit_code=ending.exit_code)
        self.actions.append(End(ending.exit_code, message))
        self.enter(Over())
