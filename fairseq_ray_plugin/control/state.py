"""What the control loop remembers between steps, and a step under way."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from fairseq_ray_plugin.control.failures import Cause, Failure, Strikes
from fairseq_ray_plugin.control.hangs import Pace
from fairseq_ray_plugin.control.nodes import NodeRecord, is_usable
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Action, End, JournalEvent, Log, Remove, Source

UNHEARD_S = 3.0
"""A worker not heard of for so long, though it speaks twice a second, is cut off or stopped."""


class Phase(enum.Enum):
    GATHERING = "gathering workers"
    TRAINING = "training"
    STOPPING = "waiting for the ranks to hold their state"
    SAVING = "waiting for the freshest state to be saved"
    ENDED = "ended"


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


@dataclasses.dataclass(frozen=True)
class State:
    phase: Phase = Phase.GATHERING
    since: float = 0.0
    """When the phase began."""

    workers: Mapping[str, Worker] = dataclasses.field(default_factory=dict)
    num_placed: int = 0
    nodes: Mapping[str, NodeRecord] = dataclasses.field(default_factory=dict)
    leaving: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Node that will be taken away -> its deadline."""

    signal: int | None = None
    waiting: str | None = None
    """What the log last said that training waits for."""

    told_of_spare_room: bool = False
    """The log has said that there is room for more workers than have something to do."""

    # the state of training

    update: int = 0
    """The most updates that any rank is known to have completed."""

    snapshots: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    """Node -> the newest state in its memory."""

    checkpoint: Source | None = None
    """The last checkpoint that this run wrote."""

    # the generation

    generation: int = 0
    ranks: tuple[str, ...] = ()
    """The generation's workers, by rank."""

    num_running: int = 0
    """Ranks whose training process has been started."""

    advanced: bool = False
    """The generation has completed an update."""

    pace: Pace = Pace()
    cause: Cause | None = None
    """Why the generation stops."""

    failures: tuple[Failure, ...] = ()
    """What went wrong in the generation, in the order it was heard."""

    at_once: bool = False
    """The ranks were told to hold at once."""

    saver: str | None = None
    """The worker whose state is on its way to a file."""

    saving_checkpoint: bool = False
    """That file is a checkpoint."""

    # earlier generations

    strikes: Strikes = Strikes()
    stopped_at: float | None = None
    """When the last stop began that no update followed yet."""

    stall_s: float = 0.0
    """What the last stop cost, up to the end of the next update."""

    losses: tuple[float, ...] = ()
    """When the last few stops began that took something away."""


@dataclasses.dataclass
class Step:
    """One step under way: the state as it becomes, and the actions so far."""

    state: State
    now: float
    config: ElasticConfig
    max_ranks: int | None
    heard: Mapping[str, float]
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
        return [name for name, w in self.workers.items() if w.standing in standings]

    def usable(self) -> list[str]:
        """Workers that could run a rank in a generation that starts now."""
        return [
            name
            for name in self.with_standing(Standing.READY)
            if self.stays(name) and not self.is_unheard(name, UNHEARD_S)
        ]

    def stays(self, worker: str) -> bool:
        """Whether the node under a worker is of use, and not about to go."""
        node = self.workers[worker].node
        return node not in self.state.leaving and is_usable(self.state.nodes, node, self.now)

    def is_unheard(self, worker: str, limit_s: float) -> bool:
        return self.now - self.heard.get(worker, self.now) > limit_s

    def rank(self, worker: str) -> str:
        """A worker's rank and node, for people."""
        ranks = self.state.ranks
        rank = ranks.index(worker) if worker in ranks else None
        return f"rank {rank} (on node {self.workers[worker].node[:8]})"

    def enter(self, phase: Phase) -> None:
        self.set(phase=phase, since=self.now)

    def remove(self, worker: str) -> None:
        self.actions.append(Remove(worker))
        del self.workers[worker]

    def log(self, kind: str, cause: str | None = None, **details: Any) -> None:
        state = self.state
        event = JournalEvent(
            kind=kind,
            generation=state.generation,
            world_size=len(state.ranks),
            update=state.update,
            cause=cause,
            details=details,
        )
        self.actions.append(Log(event))

    def end(self, kind: str, exit_code: int, message: str) -> None:
        self.log(kind, message)
        self.actions.append(End(exit_code, message))
        self.enter(Phase.ENDED)
