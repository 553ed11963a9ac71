"""What workers, their servers and ranks say to each other; what goes further is in protocol."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from fairseq_ray_plugin.protocol import Copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """What a worker must know to import what training needs."""

    run_id: str
    """Known to this run's processes alone: it names their folders in memory, which nobody else may
    guess."""

    threads: int
    """For torch on the CPU."""

    working_dir: str
    """The driver's; relative paths in the user's options mean the same where it exists."""

    python_path: tuple[str, ...]
    environment: dict[str, str]

    @property
    def name(self) -> str:
        """The run's, for everybody: from it nobody can tell the id."""
        return hashlib.sha256(self.run_id.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Site):
    """What every worker must know of the run, sent once."""

    cfg: bytes
    """fairseq's configuration, pickled in the driver, where alone fairseq is imported."""

    groups: tuple[int, ...] | None
    """Mini-batches in an update by epoch, with --fix-batch-size."""

    restart_epoch: bool
    """A training iterator without positions for all world sizes is acceptable."""

    drops_batches: bool = True
    """Training may go on without a mini-batch that is too large for a GPU's memory."""

    snapshot_updates: int | None
    """Updates between snapshots, 0 for none; None: so that they cost little."""

    user_dir: str | None
    user_dir_zip: bytes | None
    user_dir_not_sent: str = ""
    """Why it is not, where there is one."""

    last_checkpoint: str
    """Path of the checkpoint that the same command goes on from."""

    claim: int = 0
    """Number of the run's claim on its save dir: with a higher one there, nothing is written."""

    store: str = ""
    """The save dir, where it is in an object store."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preload:
    """What a worker's server needs before it can fork."""

    cfg: bytes
    working_dir: str
    python_path: tuple[str, ...]
    user_dir: str | None
    """Where this node has the user's --user-dir."""

    shared_model: str = ""
    """Path of the file in the node's memory through which its workers have one model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """A rank's place in its generation."""

    generation: int
    rank: int
    world_size: int
    restore: str | None
    """Snapshot or checkpoint to go on from; None: as the user's options say. Of a snapshot, the one
    in this node's own memory, where there is one."""

    from_snapshot: bool = False
    """`restore` is one, and is opened in this worker's own folders alone."""

    keeps_snapshots: bool
    stands_by: bool = False
    """Its generation has not begun: what it goes on from, and whether it keeps snapshots, is told
    when it does."""

    is_planned: bool = False
    """Nobody waits for it meanwhile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment(Role):
    """What one training process is to do; what is not explained here is as in `Job`."""

    master: tuple[str, int]
    """Host and port of the generation's store, which rank 0 opens."""

    groups: tuple[int, ...] | None
    restart_epoch: bool
    drops_batches: bool = True
    threads: int
    user_dir: str | None
    """Where this node has the user's --user-dir."""

    snapshot_folders: tuple[str, ...]
    """Where this node keeps snapshots, the best first."""

    snapshot_updates: int | None
    passage: str = ""
    """A folder of this worker's own on its disk, for what comes from an object store or goes to
    one; it need not be there."""

    claim: int = 0
    interface: str | None = None
    """The network interface by which other ranks are reached; None: it is not known."""

    @classmethod
    def of(cls, job: Job, role: Role, **here: Any) -> Assignment:
        """A role in a job, on a node.

        Args:
            here: what only the node knows, and what comes of both.
        """
        return cls(
            **dataclasses.asdict(role),
            groups=job.groups,
            restart_epoch=job.restart_epoch,
            drops_batches=job.drops_batches,
            threads=job.threads,
            claim=job.claim,
            **here,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a worker tells a control loop that takes it over from one that has died."""

    node: str
    is_ready: bool
    num_heard: int
    """Messages that the other loop is known to have heard; later ones are said again."""

    newest: int
    """The newest generation that it was told of."""

    generation: int
    """That of its rank; 0: it has had none."""

    rank: int
    world_size: int
    is_at_rest: bool
    """Its rank does not train any more, or is no more."""

    update: int
    """The last one it is known to have completed."""

    pid: int
    """Of its training process."""

    snapshots: tuple[Copy, ...]
    """What it has written to its node's memory, and is there."""

    gpu: str = ""
    """As in `Ready`."""

    age_s: float = 0.0
    """For so many seconds it has been there."""


# Between a worker and its server


@dataclasses.dataclass(frozen=True)
class Fork:
    """A training process begins; those before it end, or only who stood by, if it stands by."""

    assignment: Assignment
    has_listener: bool
    """The socket at `assignment.master` follows."""


@dataclasses.dataclass(frozen=True)
class Promote:
    """The training process that stands by is the one; the one before it ends."""

    generation: int


@dataclasses.dataclass(frozen=True)
class WriteCheckpoint:
    """A process begins that makes a checkpoint of a snapshot, and answers `Written`, or why not."""

    snapshot: str
    target: str | None
    """None: the names that fairseq gives it, which it was put by for."""

    claim: int = 0
    store: str = ""
    """The save dir, where it is in an object store."""

    passage: str = ""
    """The folder through which the checkpoint goes there."""


@dataclasses.dataclass(frozen=True)
class Written:
    path: str | None
    """By which it can be gone on from; None: fairseq wanted none."""

    seconds: float | None = dataclasses.field(default=None, compare=False)
    num_bytes: int | None = dataclasses.field(default=None, compare=False)
    """Of one file."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """The training process ends, for it does not answer."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """Everything is imported; what ranks inherit is being made."""


@dataclasses.dataclass(frozen=True)
class Forked:
    """There is a training process for a generation; said again where it stood by, and does not."""

    generation: int
    pid: int


@dataclasses.dataclass(frozen=True)
class NotForked:
    """What the rank before has left is alive, and cannot be ended."""

    generation: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Exited:
    pid: int
    how: str
    crashed: bool = False


# Between a worker and its rank alone


@dataclasses.dataclass(frozen=True)
class Go:
    """The generation begins for which a rank stands by."""

    restore: str | None
    """As in `Role`."""

    snapshot_updates: int | None
    """As in `Job`, or 0."""


@dataclasses.dataclass(frozen=True)
class Write:
    """The state that is held becomes a file in the first of `folders` that has room."""

    folders: tuple[str, ...]
    name: str
    as_checkpoint: bool = False
    """It is to outlive the machine."""


@dataclasses.dataclass(frozen=True)
class Holding:
    """It lives, and is about to answer a `Hold`."""


@dataclasses.dataclass(frozen=True)
class Due:
    """A state has been put by that is to become a checkpoint."""

    number: int
    """Of those of this rank, from 1."""

    generation: int
    update: int
    snapshot: str


@dataclasses.dataclass(frozen=True)
class Backlog:
    """What the worker has to write."""

    num_heard: int
    """Of the rank's."""

    num_due: int
    failing: bool
    """The last attempt failed, and there will be another."""


NOTHING = Backlog(0, 0, False)
"""What a rank takes it to be until it is told."""
