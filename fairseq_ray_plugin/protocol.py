"""What the control loop sees of the cluster, and what it asks of it: plain values, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """Training as it was asked for is not possible here: the message, one line, says why.

    Raised by a rank; the run ends with it, since another try would be refused as well.
    """


LOADING = "loading"
"""What a rank does: reading data and checkpoints, up to its first update, or an epoch's."""

TRAINING = "training"
VALIDATING = "validating"
SAVING = "saving a checkpoint"


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
    with_node: bool = False


@dataclasses.dataclass(frozen=True)
class Notice:
    """The machine under a worker will be taken away."""

    worker: str
    reason: str
    deadline: float
    """Seconds, on the observation's clock."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a rank of a generation says of itself, or its worker says of it."""

    worker: str
    generation: int
    kind: str
    """running, missing, advanced, doing, held, raised, refused, ended, finished, saved, snapshot,
    unsaved, checkpoint, stacks.
    """

    update: int | None = None
    text: str = ""
    """doing: what is being done now; raised: traceback; ended, refused, unsaved: reason; saved,
    snapshot, checkpoint, missing: path; stacks: of all its threads.
    """

    by_peer: bool = False
    """raised: only because another rank went away."""

    pid: int = 0


Event = Ready | Gone | Notice | Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    now: float
    """Seconds, monotonic."""

    room: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Node -> further workers that have room there now."""

    draining: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Node that the cluster takes away -> its deadline, on the clock of `now`."""

    heard: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Worker -> when it was last heard of; without those that have not said anything yet."""

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
    keepers: frozenset[str]
    """The workers whose ranks put a snapshot by from time to time, one a node."""


@dataclasses.dataclass(frozen=True)
class Hold:
    """Stop training, keeping the state: at the end of the update, or at once."""

    worker: str
    generation: int
    at_once: bool
    with_stacks: bool = False
    """Say first what every thread is doing."""


@dataclasses.dataclass(frozen=True)
class Save:
    """Write the state that a worker holds; as the run's last checkpoint, or for the next start."""

    worker: str
    generation: int
    as_checkpoint: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class JournalEvent:
    """One line of the journal."""

    kind: str
    """started, advanced (its first update ended), stopped, checkpoint, waiting, unfit, removed,
    unsaved; the run's last event is finished, failed or interrupted.
    """

    generation: int
    world_size: int
    update: int | None
    """Updates completed; None where no update is known."""

    cause: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the line, such as the ranks of a generation."""


@dataclasses.dataclass(frozen=True)
class Log:
    event: JournalEvent


@dataclasses.dataclass(frozen=True)
class End:
    exit_code: int
    message: str


Action = Place | Remove | Start | Hold | Save | Log | End


# What workers and ranks are told at their start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker must know of the run, sent once."""

    run_id: str
    cfg: bytes
    """fairseq's configuration, pickled in the driver, where alone fairseq is imported."""

    groups: tuple[int, ...] | None
    restart_epoch: bool
    snapshot_updates: int | None
    threads: int
    working_dir: str
    python_path: tuple[str, ...]
    user_dir: str | None
    user_dir_zip: bytes | None
    last_checkpoint: str
    """Path of the checkpoint that the same command goes on from."""

    environment: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one training process is to do."""

    generation: int
    rank: int
    world_size: int
    master: tuple[str, int]
    """Host and port of the generation's store, which rank 0 opens."""

    restore: str | None
    """Snapshot or checkpoint to go on from; None: as the user's options say."""

    groups: tuple[int, ...] | None
    """Mini-batches in an update by epoch, with --fix-batch-size."""

    restart_epoch: bool
    """A training iterator without positions for all world sizes is acceptable."""

    threads: int
    """For torch on the CPU."""

    user_dir: str | None
    """Where this node has the user's --user-dir."""

    snapshot_folders: tuple[str, ...]
    """Where this node keeps snapshots, the best first."""

    snapshot_updates: int | None
    """Updates between snapshots, 0 for none; None: so that they cost little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preload:
    """What the server needs before it can fork."""

    cfg: bytes
    """fairseq's configuration, pickled."""

    working_dir: str
    """The driver's; relative paths in the user's options mean the same where it exists."""

    python_path: tuple[str, ...]
    user_dir: str | None
    """Where this node has the user's --user-dir."""
