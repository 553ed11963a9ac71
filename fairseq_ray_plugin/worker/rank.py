"""One rank of one generation: fairseq's own `main`, and a thread that answers for it.

Runs in a process of its own, forked from the preloaded server (`forkserver.py`). It lives, at
rest, until its worker ends it: its state may still be wanted.
"""

from __future__ import annotations

import atexit
import functools
import logging
import math
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import fairseq_cli.train
import setproctitle
import torch
from fairseq.distributed import utils as distributed_utils
from omegaconf import open_dict

from fairseq_ray_plugin.activity import Activity
from fairseq_ray_plugin.assignment import Assignment, Backlog, Go, Holding, Write
from fairseq_ray_plugin.checkpoint_hook import add_checkpoint_hook
from fairseq_ray_plugin.checkpoints import claim, stores
from fairseq_ray_plugin.faults import Error
from fairseq_ray_plugin.protocol import (
    Checkpointed,
    Finished,
    Held,
    Hold,
    OutOfMemory,
    Raised,
    Refusal,
    Saved,
    StandingBy,
    Unsaved,
)
from fairseq_ray_plugin.training import gradients, inherited
from fairseq_ray_plugin.training.beginning import add_beginning_hook
from fairseq_ray_plugin.training.boundary import StateKeeper
from fairseq_ray_plugin.training.collectives import join
from fairseq_ray_plugin.training.data_hook import add_data_hook
from fairseq_ray_plugin.training.errors import fault_of
from fairseq_ray_plugin.training.gate import Gate
from fairseq_ray_plugin.training.inherited import Inherited, NotInherited
from fairseq_ray_plugin.training.out_of_memory import add_out_of_memory_hook
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.save_dir import SaveDir
from fairseq_ray_plugin.worker import snapshots, terminal
from fairseq_ray_plugin.worker.deposits import Deposits
from fairseq_ray_plugin.worker.progress import Link, Progress

logger = logging.getLogger(__name__)

END_LIMIT_S = 60.0
"""W&B may have to send what it has; then the run ends without it."""

SIGN_S = 1.0
"""How often who waits shows that it does."""

MESSAGE_LIMIT, TRACEBACK_LIMIT = 2_000, 20_000
"""Characters of an exception that travel: a message may print a tensor."""


def train_rank(
    cfg: Any,
    made: Inherited | NotInherited,
    assignment: Assignment,
    connection: Connection,
    listener: int | None,
) -> None:
    """Train as one rank until the worker ends this process; never returns.

    Args:
        cfg: fairseq's configuration, as `fairseq-train` would use it.
        made: the task and the model, or why they are to be made here.
        connection: to the worker; its end of file ends this process.
        listener: file descriptor of the listening socket at `assignment.master`, on rank 0.
    """
    setproctitle.setproctitle(
        f"fairseq rank {assignment.rank} of {assignment.world_size}, "
        f"generation {assignment.generation}: {cfg.checkpoint.save_dir}"
    )
    link = Link(connection)
    keeper = StateKeeper(assignment.rank, assignment.world_size)
    progress = Progress(link, assignment.rank, keeper.steps, keeper.own.take, assignment.world_size)
    store = cfg.checkpoint.save_dir if stores.is_url(cfg.checkpoint.save_dir) else ""
    keeper.folders = assignment.snapshot_folders
    keeper.save_dir = SaveDir(assignment.claim, store, assignment.passage)
    if store:
        with open_dict(cfg):
            # fairseq finds there what is gone on from; what it would write there goes by memory
            cfg.checkpoint.save_dir = assignment.passage
    by_and_by = snapshots.Snapshots(
        link, keeper.put_by, assignment.snapshot_folders, assignment.snapshot_updates
    )

    def on_boundary(update: int) -> None:
        progress.advanced(update)
        progress.turn_to("saving")
        by_and_by.at_boundary(update)
        progress.turn_to("training")

    deposits = Deposits(
        link,
        assignment.generation,
        by_and_by,
        lambda: progress.doing(Activity.SAVING),
        is_only_way=bool(store),
    )
    keeper.on_boundary, keeper.on_doing = on_boundary, progress.doing
    keeper.on_step = functools.partial(progress.turn_to, "training")
    keeper.on_due, keeper.on_logged = deposits.add, progress.logged
    keeper.on_rest = end_properly
    keeper.on_out_of_memory = lambda update, dropped: link.send(OutOfMemory(update, dropped))
    keeper.on_hold = lambda update: link.send(Held(update, keeper.asked, progress.tally()))
    keeper.on_checkpoint = lambda path, update: link.send(Checkpointed(update, path))
    gate = Gate(
        assignment.restore,
        assignment.stands_by,
        keeper.steps,
        on_waiting=lambda: link.send(StandingBy()),
        is_planned=assignment.is_planned,
    )

    def go(order: Go) -> None:
        by_and_by.every = order.snapshot_updates
        gate.open(order.restore)

    told = (connection, link, keeper, deposits, progress, go)
    threading.Thread(target=answer, args=told, daemon=True).start()
    try:
        inherit(cfg, made, assignment)
        train(cfg, assignment, listener, keeper, gate)
        if keeper.trainer is None:  # as without iopath, which it wants to write asynchronously
            raise Refused("fairseq ended before training began; its log, above, says why")
        deposits.wait_until_written()
    except Refused as error:
        link.send(Refusal(str(error), error.spoiled))
    except BaseException as error:
        there = as_it_travels(error)
        held = keeper.freeze_after_failure()
        link.send(Raised(held, there, progress.tally()))
    else:
        is_ended = threading.Event()
        finish = threading.Thread(target=_finish, args=(link, keeper, progress, is_ended))
        finish.start()
        end_properly()
        is_ended.set()
        finish.join()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    threading.Event().wait()


def inherit(cfg: Any, made: Inherited | NotInherited, assignment: Assignment) -> None:
    """Task and model are not made once more, or the log says once why they are."""
    if isinstance(made, Inherited):
        inherited.use(made, cfg)
    elif assignment.rank == 0 and assignment.generation == 1:
        logger.info("each start makes the task and the model again: %s", made)


def train(
    cfg: Any, assignment: Assignment, listener: int | None, keeper: StateKeeper, gate: Gate
) -> None:
    """fairseq's `main` as this rank, with all that it is patched by; as in `train_rank`."""
    torch.set_num_threads(assignment.threads)
    set_num_resources(cfg, assignment)
    set_batch_size(cfg, assignment.groups, assignment.world_size)
    history = add_data_hook(
        assignment.rank, assignment.world_size, assignment.groups, assignment.restart_epoch
    )
    add_checkpoint_hook(keeper, history, gate)
    add_out_of_memory_hook(assignment.drops_batches, keeper.on_out_of_memory)
    add_beginning_hook(assignment, gate)
    terminal.show_bar()
    if not cfg.common.cpu:
        gate.wait()  # before anything is in the GPU's memory
    if assignment.world_size > 1:
        join(cfg, assignment, listener)
        keeper.steps.end("meet")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Distributed is already initialized")
            distributed_utils.distributed_main(0, fairseq_cli.train.main, cfg, {})
    else:
        if assignment.groups is not None:
            gradients.as_on_several_workers(cfg.distributed_training.ddp_backend)
        fairseq_cli.train.main(cfg)


def end_properly() -> None:
    """What else happens when a process ends: writers are closed, who asked to be called is."""
    try:
        atexit._run_exitfuncs()
    except BaseException as error:  # the others have been called; as where a process ends
        logger.warning("what was to be called at the end of the process raised %r", error)


def _finish(link: Link, keeper: StateKeeper, progress: Progress, is_ended: threading.Event) -> None:
    """Training is over when all that was logged is where it belongs, or has had its time."""
    end = time.monotonic() + END_LIMIT_S
    while not is_ended.wait(SIGN_S) and time.monotonic() < end:
        progress.doing(Activity.SAVING)
    if not is_ended.is_set():
        logger.warning("writers are not closed after %.0f s, and not waited for", END_LIMIT_S)
    link.send(Finished(keeper.freeze(), progress.tally()))


def as_it_travels(error: BaseException) -> Error:
    """An exception, shortened; its traceback is of interest where it is a cause."""
    kind, fault = type(error), fault_of(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    text = "" if fault.is_peers else "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:]
    return Error(f"{module}{kind.__qualname__}", str(error)[:MESSAGE_LIMIT], text, fault)


def answer(
    connection: Connection,
    link: Link,
    keeper: StateKeeper,
    deposits: Deposits,
    progress: Progress,
    go: Callable[[Go], object],
) -> None:
    """For the worker at any time, also while training is blocked; runs in a thread of its own."""
    orders: queue.SimpleQueue[Hold | Write] = queue.SimpleQueue()
    threading.Thread(target=_obey, args=(orders, link, keeper, progress), daemon=True).start()
    while True:
        try:
            order = connection.recv()
            if isinstance(order, Hold):
                link.send(Holding())  # the worker ends a process that says nothing
        except (EOFError, OSError):
            os._exit(1)  # the worker is gone
        match order:
            case Backlog():
                deposits.hear(order)
            case Go():
                go(order)
            case _:
                orders.put(order)


def _obey(
    orders: queue.SimpleQueue[Hold | Write], link: Link, keeper: StateKeeper, progress: Progress
) -> None:
    """One order after the other; each may take long."""
    while True:
        match orders.get():
            case Hold(generation, at_once):
                keeper.asked = generation
                if at_once:
                    link.send(Held(keeper.freeze(), generation, progress.tally()))
                else:
                    keeper.hold_requested.set()
            case Write(folders, name, as_checkpoint):
                try:
                    # where snapshots go there are no claims, and nobody overtakes
                    if keeper.save_dir.is_overtaken(folders[0]):
                        raise OSError(f"{folders[0]} {claim.OVERTAKEN}")
                    save = functools.partial(keeper.save, as_checkpoint=as_checkpoint)
                    path = snapshots.write(save, folders, name)
                    link.send(Saved(keeper.boundary.update, path))
                except Exception as error:
                    link.send(Unsaved(f"{name}: {error!r}"))


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
        if cfg.common.cpu:
            distributed.distributed_backend = "gloo"
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
