"""One rank of one generation: fairseq's own `main`, and a thread that answers for it.

Runs in a process of its own, forked from the preloaded server (`forkserver.py`). What it says to
its worker are tuples (kind, update, text, by_peer); what it hears are ("hold", at_once) and
("save", path). It lives, at rest, until its worker ends it: its state may still be wanted.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import fairseq_cli.train
import torch
import torch.distributed as dist
from fairseq.distributed import utils as distributed_utils
from omegaconf import open_dict

from fairseq_ray_plugin import train_iterator
from fairseq_ray_plugin.checkpoint_hook import StateKeeper, add_checkpoint_hook

JOIN_LIMIT = datetime.timedelta(seconds=60)
"""How long the ranks of a generation wait for each other at its start."""


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


def train_rank(
    cfg: Any, assignment: Assignment, connection: Connection, listener: int | None
) -> None:
    """Train as one rank until the worker ends this process; never returns.

    Args:
        cfg: fairseq's configuration, as `fairseq-train` would use it.
        connection: to the worker; its end of file ends this process.
        listener: file descriptor of the listening socket at `assignment.master`, on rank 0.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to deal with
    link = _Link(connection)
    keeper = StateKeeper(
        assignment.rank,
        assignment.world_size,
        on_boundary=_Progress(link, assignment.rank),
        on_hold=lambda update: link.send("held", update),
        on_checkpoint=lambda path, update: link.send("checkpoint", update, path),
    )
    threading.Thread(target=_answer, args=(link, keeper), daemon=True).start()
    try:
        torch.set_num_threads(assignment.threads)
        set_num_resources(cfg, assignment)
        set_batch_size(cfg, assignment.groups, assignment.world_size)
        add_checkpoint_hook(keeper, assignment.groups, assignment.restore, assignment.restart_epoch)
        if assignment.groups is not None:
            _seed_mini_batches(keeper)
        if assignment.world_size > 1:
            _join(cfg, assignment, listener)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Distributed is already initialized")
                distributed_utils.distributed_main(0, fairseq_cli.train.main, cfg, {})
        else:
            fairseq_cli.train.main(cfg)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        link.send("raised", keeper.freeze_after_failure(), text, is_peer_error(error))
    else:
        link.send("finished", keeper.freeze())
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    threading.Event().wait()


class _Link:
    """The connection to the worker, for more than one thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def send(
        self, kind: str, update: int | None = None, text: str = "", by_peer: bool = False
    ) -> None:
        with self._lock:
            self.connection.send((kind, update, text, by_peer))


class _Progress:
    """Reports a rank's first boundary, and further ones of rank 0, no more than one a second."""

    def __init__(self, link: _Link, rank: int) -> None:
        self.link, self.rank = link, rank
        self._reported = -math.inf

    def __call__(self, update: int) -> None:
        now = time.monotonic()
        if self._reported < 0 or (self.rank == 0 and now - self._reported >= 1):
            self._reported = now
            self.link.send("advanced", update)


def _answer(link: _Link, keeper: StateKeeper) -> None:
    while True:
        try:
            command, argument = link.connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # the worker is gone
        if command == "hold" and argument:
            link.send("held", keeper.freeze())
        elif command == "hold":
            keeper.hold_requested.set()
        elif command == "save":
            try:
                link.send("saved", keeper.save(argument), argument)
            except Exception as error:
                link.send("unsaved", None, f"{argument}: {error!r}")


def set_num_resources(cfg: Any, assignment: Assignment) -> None:
    """Set the fields of `cfg` that say which rank of how many this process is."""
    with open_dict(cfg):
        distributed = cfg.distributed_training
        distributed.distributed_world_size = assignment.world_size
        distributed.distributed_num_procs = 1
        distributed.distributed_rank = assignment.rank
        distributed.distributed_no_spawn = True
        distributed.nprocs_per_node = 1
        distributed.device_id = 0  # Ray shows a worker its own GPU alone
        distributed.distributed_init_method = None
        if assignment.world_size > 1:
            host, port = assignment.master
            distributed.distributed_init_method = f"tcp://{host}:{port}"
        distributed.distributed_backend = "gloo" if cfg.common.cpu else "nccl"
        cfg.common.user_dir = assignment.user_dir


def set_batch_size(cfg: Any, groups: tuple[int, ...] | None, world_size: int) -> None:
    """Set `update_freq` so that `groups` mini-batches make one update, by epoch."""
    if groups is None:
        return
    with open_dict(cfg):
        cfg.optimization.update_freq = [math.ceil(group / world_size) for group in groups]
        if cfg.common.fp16 and cfg.common.fp16_scale_window is None:
            # fairseq's default, 2^14 / ranks / update_freq, by what does not change with the ranks
            cfg.common.fp16_scale_window = max(1, 2**14 // groups[0])


def _seed_mini_batches(keeper: StateKeeper) -> None:
    attach = keeper.attach

    def attach_seeded(trainer: Any, boundary: Any) -> None:
        train_iterator.seed_by_mini_batch(trainer, keeper.rank, keeper.world_size)
        attach(trainer, boundary)

    keeper.attach = attach_seeded  # type: ignore[method-assign]


def _join(cfg: Any, assignment: Assignment, listener: int | None) -> None:
    """Form the process group, over a store that is this generation's alone."""
    host, port = assignment.master
    store = dist.TCPStore(
        host,
        port,
        assignment.world_size,
        is_master=assignment.rank == 0,
        timeout=JOIN_LIMIT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )
    dist.init_process_group(
        cfg.distributed_training.distributed_backend,
        store=dist.PrefixStore(str(assignment.generation), store),
        rank=assignment.rank,
        world_size=assignment.world_size,
    )


_PEER_ERROR = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|TCPStore", re.IGNORECASE
)


def is_peer_error(error: BaseException) -> bool:
    """Whether the error only says that another rank is out of reach."""
    if isinstance(error, dist.DistError):  # its store and network errors are derived from it
        return True
    return isinstance(error, RuntimeError) and bool(_PEER_ERROR.search(str(error)))
