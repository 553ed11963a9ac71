"""Every value that crosses a process or a decision: frozen, and matched by its type.

A rank speaks to its worker, a worker to the driver, and the driver's loop decides from what is
observed. What a rank says travels in an envelope (`FromRank`) that its worker passes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fairseq_ray_plugin.activity import Activity, Own, Tally
from fairseq_ray_plugin.faults import Error
from fairseq_ray_plugin.state_copy import Copy as Copy
from fairseq_ray_plugin.state_copy import HeldBy as HeldBy
from fairseq_ray_plugin.state_copy import InMemory as InMemory
from fairseq_ray_plugin.state_copy import InSaveDir as InSaveDir

# What a rank says. Clocks are its own, in seconds: only differences mean something.


@dataclasses.dataclass(frozen=True)
class Running:
    """Its process has been forked."""

    pid: int


@dataclasses.dataclass(frozen=True)
class StandingBy:
    """All is made for the generation to come that can be made without its state."""


@dataclasses.dataclass(frozen=True)
class Advanced:
    """An update is complete: a generation's first one, and from time to time a later one."""

    update: int
    at: float
    steps: tuple[tuple[str, float], ...] = ()
    """With the first one: what the rank did up to it, in order, and the seconds of each."""

    tally: Tally | None = dataclasses.field(default=None, compare=False)
    own: Own | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Doing:
    """What comes next, or still goes on."""

    activity: Activity
    at: float


@dataclasses.dataclass(frozen=True)
class Checkpointed:
    """fairseq has written a checkpoint."""

    update: int
    path: str
    seconds: float | None = dataclasses.field(default=None, compare=False)
    num_bytes: int | None = dataclasses.field(default=None, compare=False)
    """What writing it took, and the size of one file; None: not known."""


@dataclasses.dataclass(frozen=True)
class Delayed:
    """A checkpoint could not be written; training goes on."""

    update: int
    reason: str
    given_up: bool = False
    """It will not be tried again: newer ones wait."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state has been put by in the node's memory, in case that all processes die."""

    update: int
    path: str


@dataclasses.dataclass(frozen=True)
class NoSnapshot:
    """The state could not be put by; training goes on."""

    reason: str


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """A mini-batch was too large for its GPU: training went on without it, or tried it again."""

    update: int
    dropped: bool


@dataclasses.dataclass(frozen=True)
class Held:
    """It is at rest, as it was asked to be."""

    update: int | None
    """After which it holds the state; None: it holds none."""

    asked: int
    """The generation that was to be held: where that never began, an older one answers."""

    tally: Tally | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Raised:
    """The training code raised an exception."""

    update: int | None
    """After which it still holds the state."""

    error: Error
    tally: Tally | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Training as it was asked for is not possible (see `Refused`)."""

    reason: str
    spoiled: bool = False


@dataclasses.dataclass(frozen=True)
class Finished:
    """Training has come to its end."""

    update: int | None
    tally: Tally | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Ended:
    """Its process is no more."""

    how: str
    crashed: bool = False
    """By its own doing (SIGABRT, SIGSEGV, ...), as where CUDA gives up."""


@dataclasses.dataclass(frozen=True)
class Blocked:
    """It cannot begin: what the rank before has started cannot be ended."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Missing:
    """The snapshot that it was to go on from is gone."""

    path: str


@dataclasses.dataclass(frozen=True)
class Saved:
    """The copy that was to be saved is a file."""

    update: int
    path: str


@dataclasses.dataclass(frozen=True)
class Unsaved:
    """The copy that was to be saved is not."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Stacks:
    """What all its threads were doing."""

    text: str


OfTraining = Running | StandingBy | Advanced | Doing | OutOfMemory | Stacks
OfCopies = Checkpointed | Delayed | Snapshot | NoSnapshot | Missing | Saved | Unsaved
OfItsEnd = Held | Raised | Refusal | Finished | Ended | Blocked
RankMessage = OfTraining | OfCopies | OfItsEnd


# What a worker says


@dataclasses.dataclass(frozen=True)
class Ready:
    """It has imported everything, and can start a rank."""

    gpu: str = ""
    """UUID of its GPU, where it has one and that is known."""


@dataclasses.dataclass(frozen=True)
class Unfit:
    """It cannot start ranks, and never will."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Notice:
    """The machine under it will be taken away."""

    reason: str
    left_s: float
    """Seconds from when this was learned; 0 where the time is past."""


@dataclasses.dataclass(frozen=True)
class FromRank:
    """What its rank says, or the worker of it."""

    generation: int
    """The rank's."""

    says: RankMessage


WorkerMessage = Ready | Unfit | Notice | FromRank


# Orders to a worker


@dataclasses.dataclass(frozen=True)
class Hold:
    """The rank comes to rest with its state, and answers `Held`; also where it never began."""

    generation: int
    at_once: bool
    """Now, instead of at the end of the update."""

    with_stacks: bool = False
    """Say first what every thread is doing."""


@dataclasses.dataclass(frozen=True)
class Save:
    """The state that is held becomes a file, and `Saved` or `Unsaved` follows."""

    as_checkpoint: bool
    """The run's last one; else a snapshot."""


@dataclasses.dataclass(frozen=True)
class Publish:
    """A snapshot becomes the run's last checkpoint, and `Saved` or `Unsaved` follows."""

    snapshot: Copy


@dataclasses.dataclass(frozen=True)
class Drop:
    """Snapshots on the worker's node are of no use any more."""

    paths: frozenset[str]


@dataclasses.dataclass(frozen=True)
class StandDown:
    """The rank that stands by for this generation is not wanted."""

    generation: int


Order = Hold | Save | Publish | Drop | StandDown


# What is observed


@dataclasses.dataclass(frozen=True)
class Heard:
    """A worker says something."""

    worker: str
    says: WorkerMessage


@dataclasses.dataclass(frozen=True)
class Gone:
    """A worker, or the node under it, is dead."""

    worker: str
    reason: str
    with_node: bool = False


@dataclasses.dataclass(frozen=True)
class Unreached:
    """An order did not arrive, or nobody knows whether it did."""

    worker: str
    order: Order | Start | StandBy
    reason: str


Event = Heard | Gone | Unreached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    now: float
    """Seconds, monotonic; time in which the driver itself stood still is left out."""

    room: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Node -> further workers that have room there now."""

    draining: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Node that the cluster takes away -> its deadline, on the clock of `now`."""

    heard: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Node -> when it was last heard of; without those that have not said anything yet."""

    events: tuple[Event, ...] = ()
    signal: int | None = None
    """A signal that asks the driver to end."""

    head_silent_s: float = 0.0
    """For how long the cluster's head has not answered."""

    save_dir_lost: str | None = None
    """Who has taken the save dir, for people, while this run was not heard of."""

    nodes_outlast_head_s: float = 0.0
    """For how long nodes wait for a head that comes back with what it knew; 0: it knows nothing."""


# What is to be done


@dataclasses.dataclass(frozen=True)
class Place:
    worker: str
    node: str


@dataclasses.dataclass(frozen=True)
class Remove:
    worker: str


@dataclasses.dataclass(frozen=True)
class StandBy:
    """Ranks are made for a generation that may begin, beside those of the last: `Start` follows."""

    generation: int
    ranks: tuple[str, ...]
    """Workers, by rank."""

    is_planned: bool = False
    """Nobody waits for them yet: those of the last generation train."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A generation begins."""

    generation: int
    ranks: tuple[str, ...]
    """Workers, by rank."""

    source: Copy | None
    """What it goes on from: a file; None: what the user's options say."""

    keepers: frozenset[str]
    """The workers whose ranks put a snapshot by from time to time, one a node."""

    nearby: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Node -> path of a file in its memory that was written after the same update."""


@dataclasses.dataclass(frozen=True)
class Tell:
    worker: str
    order: Order


ClusterAction = Place | Remove | StandBy | Start | Tell
