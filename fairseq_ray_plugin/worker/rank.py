"""One rank of one generation: fairseq's own `main`, and a thread that answers for it.

Runs in a process of its own, forked from the preloaded server (`forkserver.py`). What it says to
its worker are tuples (kind, update, text, by_peer); what it hears are ("hold", at_once) and
("save", path). It lives, at rest, until its worker ends it: its state may still be wanted.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import fairseq_cli.train
import torch
from fairseq.distributed import utils as distributed_utils
from omegaconf import open_dict

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.checkpoint_hook import add_checkpoint_hook
from fairseq_ray_plugin.protocol import Assignment, Refused
from fairseq_ray_plugin.training import gradients
from fairseq_ray_plugin.training.boundary import StateKeeper
from fairseq_ray_plugin.training.collectives import is_peer_error, join
from fairseq_ray_plugin.training.data_hook import add_data_hook

logger = logging.getLogger(__name__)

FIRST_SNAPSHOT_S = 10.0
"""A generation's first snapshot, where the user did not say how often."""

SNAPSHOT_SHARE = 250
"""Then each comes so many times later than the last one took: two nodes' cost 0.8% in all."""


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
    progress = _Progress(link, assignment.rank)
    keeper = StateKeeper(
        assignment.rank,
        assignment.world_size,
        on_doing=progress.doing,
        on_hold=lambda update: link.send("held", update),
        on_checkpoint=lambda path, update: link.send("checkpoint", update, path),
    )
    snapshots = _Snapshots(link, keeper, assignment)

    def on_boundary(update: int) -> None:
        progress.advanced(update)
        snapshots.at_boundary(update)

    keeper.on_boundary = on_boundary
    threading.Thread(target=_answer, args=(link, keeper), daemon=True).start()
    try:
        torch.set_num_threads(assignment.threads)
        set_num_resources(cfg, assignment)
        set_batch_size(cfg, assignment.groups, assignment.world_size)
        history = add_data_hook(
            assignment.rank, assignment.world_size, assignment.groups, assignment.restart_epoch
        )
        add_checkpoint_hook(keeper, history, assignment.restore)
        if assignment.world_size > 1:
            join(cfg, assignment, listener)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Distributed is already initialized")
                distributed_utils.distributed_main(0, fairseq_cli.train.main, cfg, {})
        else:
            if assignment.groups is not None:
                gradients.as_on_several_workers(cfg.distributed_training.ddp_backend)
            fairseq_cli.train.main(cfg)
        if keeper.trainer is None:  # as without iopath, which it wants to write asynchronously
            raise Refused("fairseq ended before training began; its log, above, says why")
    except Refused as error:
        link.send("refused", keeper.freeze_after_failure(), str(error))
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
    """Tells what this rank is doing, and that it gets on: no more than once a second.

    All ranks tell of their first update, rank 0 alone of all else: where one rank does not get
    on, none does.
    """

    def __init__(self, link: _Link, rank: int) -> None:
        self.link, self.rank = link, rank
        self._has_advanced = False
        self._doing = protocol.LOADING
        self._told = -math.inf

    def advanced(self, update: int) -> None:
        """An update has been completed; training goes on."""
        if not self._has_advanced or self._is_due(protocol.TRAINING):
            self._has_advanced = True
            self._told = time.monotonic()
            self._doing = protocol.TRAINING
            self.link.send("advanced", update)

    def doing(self, what: str) -> None:
        """What comes next, or still goes on."""
        if self._is_due(what):
            self._told = time.monotonic()
            self._doing = what
            self.link.send("doing", None, what)

    def _is_due(self, what: str) -> bool:
        return self.rank == 0 and (what != self._doing or time.monotonic() - self._told >= 1)


class _Snapshots:
    """Puts the state by in this node's memory from time to time, for when every process dies."""

    def __init__(self, link: _Link, keeper: StateKeeper, assignment: Assignment) -> None:
        self.link, self.keeper = link, keeper
        self.every, self.folders = assignment.snapshot_updates, assignment.snapshot_folders
        self._due = time.monotonic() + FIRST_SNAPSHOT_S

    def at_boundary(self, update: int) -> None:
        """Save the state now, if it is time; training waits."""
        begin = time.monotonic()
        if self.every is None:
            if begin < self._due:
                return
        elif self.every == 0 or update % self.every:
            return
        try:
            path = _save(self.keeper.put_by, self.folders, f"update_{update}.pt")
        except OSError as error:
            self.link.send("unsaved", None, repr(error))
        else:
            self.link.send("snapshot", update, path)
        self._due = time.monotonic() + (time.monotonic() - begin) * SNAPSHOT_SHARE


def _save(save: Callable[[str], int], folders: tuple[str, ...], name: str) -> str:
    """A snapshot is in the first of `folders` that has room for it; returns its path."""
    for folder in folders[:-1]:
        try:
            path = os.path.join(folder, name)
            save(path)
            return path
        except (OSError, RuntimeError) as error:  # torch's writer says neither which nor why
            logger.warning("no room for a snapshot in %s (%s): to disk", folder, error)
    path = os.path.join(folders[-1], name)
    save(path)
    return path


def _answer(link: _Link, keeper: StateKeeper) -> None:
    """For the worker at any time, also while training is blocked; runs in a thread of its own."""
    while True:
        try:
            command, argument = link.connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # the worker is gone
        if command == "hold" and argument:
            link.send("holding")  # the worker ends a process that says nothing
            link.send("held", keeper.freeze())
        elif command == "hold":
            keeper.hold_requested.set()
        elif command == "save":
            folders, name = argument
            try:
                path = _save(keeper.save, folders, name)
                link.send("saved", keeper.freeze(), path)
            except Exception as error:
                link.send("unsaved", None, f"{name}: {error!r}")


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
