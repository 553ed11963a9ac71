"""Keeps the training state of a rank within reach: at a boundary, in a snapshot, on resume.

Beside `compat` the only file that patches fairseq. A boundary is the moment between two updates,
where the state is the same on every rank. From the end of an update to the optimizer step of the
next one nothing of the state changes, so a second thread may save it even while the first is
blocked in a collective whose other end is dead.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fairseq_cli.train
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import iterators
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer
from omegaconf import open_dict

from fairseq_ray_plugin import exact, pace, train_iterator
from fairseq_ray_plugin.batching import Layout
from fairseq_ray_plugin.train_iterator import ElasticEpochBatchIterator

EXTRA = "elastic"
"""Key of our part of a checkpoint's `extra_state`; stock fairseq passes over it."""


@dataclasses.dataclass(frozen=True)
class Boundary:
    """What of the state is not in the trainer."""

    update: int
    iterator: dict[str, Any]
    best: float | None = None
    early_stop: tuple[float, int] | None = None
    """fairseq's --patience: the best loss and the validations since; stock forgets them."""

    val_loss: float | None = None
    pending: bool = False
    """The validation and checkpoint that are due at this update are still to come."""

    lr_step: tuple[int, float | None] | None = None
    """The learning rate step at the end of an epoch that is still to come."""


class StateKeeper:
    """One rank's state at its last boundary, and the right to read it.

    Args:
        rank, world_size: of this generation.
        on_boundary: called with the number of updates after each one completed.
        on_doing: called with what comes next, or still goes on (see pace.py).
        on_hold: called with the number of updates when training comes to rest because
            `hold_requested` is set.
        on_checkpoint: called with path and updates after each checkpoint this rank wrote.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        on_boundary: Callable[[int], None] = lambda update: None,
        on_doing: Callable[[str], None] = lambda what: None,
        on_hold: Callable[[int], None] = lambda update: None,
        on_checkpoint: Callable[[str, int], None] = lambda path, update: None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.on_boundary, self.on_doing = on_boundary, on_doing
        self.on_hold, self.on_checkpoint = on_hold, on_checkpoint
        self.hold_requested = threading.Event()
        self.catch_up = False
        """The state was loaded with a validation and checkpoint pending."""
        self.trainer: Any = None
        self.boundary: Boundary | None = None
        # held by the training thread from the optimizer step to the boundary after it, and
        # for ever by whoever freezes the state
        self._gate = threading.Lock()
        self._in_update = False
        self._frozen = False

    # called by the training thread

    def attach(self, trainer: Any, boundary: Boundary) -> None:
        """The trainer has loaded its state: from now on it can be frozen."""
        optimizer_step, lr_step = trainer.task.optimizer_step, trainer.lr_step

        @functools.wraps(optimizer_step)
        def guarded_optimizer_step(*args: Any, **kwargs: Any) -> None:
            if not self._in_update:  # AMP repeats an update from within
                self._gate.acquire()
                self._in_update = True
            optimizer_step(*args, **kwargs)

        @functools.wraps(lr_step)
        def recorded_lr_step(epoch: int, val_loss: float | None = None) -> float:
            with self._gate:
                rate = lr_step(epoch, val_loss)
                if self.boundary is not None:
                    self.boundary = dataclasses.replace(self.boundary, lr_step=None)
                return rate

        trainer.task.optimizer_step, trainer.lr_step = guarded_optimizer_step, recorded_lr_step
        with self._gate:
            self.trainer, self.boundary = trainer, boundary

    def record(self, boundary: Boundary) -> None:
        """The state is that of `boundary`; blocks for ever where it has been frozen before."""
        if not self._in_update:
            self._gate.acquire()
        self.boundary = boundary
        self._in_update = False
        self._gate.release()

    def put_by(self, path: str) -> int:
        """Write the state at the boundary that training is at; returns its number of updates.

        The file appears whole or not at all. OSError passes through.
        """
        # not behind the gate: whoever wants to freeze the state meanwhile only reads it, too
        assert self.boundary is not None and not self._in_update
        return self._write(path, self.boundary)

    def rest(self) -> None:
        """Training stays at this boundary until the process ends, if that was asked for."""
        if self.hold_requested.is_set():
            self.on_hold(self.freeze())
            threading.Event().wait()

    # called by any thread

    def freeze(self, timeout_s: float = 20.0) -> int | None:
        """The state stays as it is until the process ends; returns its number of updates.

        Waits for an optimizer step that is under way, no longer than `timeout_s`.

        None: there is no whole state, before it is loaded or after a failure within an update.
        """
        if not self._frozen:
            if self._gate.acquire(timeout=timeout_s):
                self._frozen = True
            elif not self._frozen:  # nor has another thread frozen it meanwhile
                return None
        return self.boundary.update if self.boundary else None

    def freeze_after_failure(self) -> int | None:
        """As `freeze`, for the training thread when an exception has ended it."""
        return None if self._in_update else self.freeze()

    def save(self, path: str) -> int:
        """Write the frozen state as a checkpoint; returns its number of updates.

        The file appears whole or not at all. OSError passes through.
        """
        if not self._frozen or self.boundary is None:
            raise RuntimeError("there is no state to save")
        return self._write(path, self.boundary)

    def _write(self, path: str, boundary: Boundary) -> int:
        with _side_stream():
            self.trainer.consolidate_optimizer()
            state = utils.move_to_cpu(self.trainer.state_dict())
            left_out = utils.move_to_cpu(exact.collect(self.trainer))
        state["extra_state"].update(
            train_iterator=boundary.iterator,
            val_loss=boundary.val_loss,
            **extra(boundary, left_out),
        )
        if boundary.best is not None:
            state["extra_state"]["best"] = boundary.best
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.tmp"
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
        return boundary.update


@contextmanager
def _side_stream() -> Iterator[None]:
    """Copies from the GPU do not wait behind a collective that will never end."""
    if torch.cuda.is_initialized():
        with torch.cuda.stream(torch.cuda.Stream()):
            yield
    else:
        yield


def extra(boundary: Boundary, left_out: dict[str, Any]) -> dict[str, Any]:
    """What we add to a checkpoint's `extra_state`."""
    return {
        EXTRA: {
            "early_stop": boundary.early_stop,
            "pending": boundary.pending,
            "lr_step": boundary.lr_step,
            "left_out": left_out,
        }
    }


def add_checkpoint_hook(
    keeper: StateKeeper,
    groups: tuple[int, ...] | None,
    restore: str | None,
    restart_epoch: bool = False,
) -> None:
    """Patch fairseq, in this process, so that `keeper` knows the state at each boundary.

    Args:
        groups: mini-batches in an update by epoch, with --fix-batch-size; else None.
        restore: the snapshot or checkpoint of this run to go on from; None: what the user's
            own options say.
        restart_epoch: where positions do not survive a resize, start the epoch again.
    """
    _deal_mini_batches(keeper, groups, restart_epoch)
    _record_boundaries(keeper)
    _show_progress(keeper)
    if restore is not None:
        _read_validation_data_once()
    _extend_checkpoints(keeper)
    _restore(keeper, restore)


def _patch(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a function of fairseq by one that gets the original as its first argument."""
    original = getattr(owner, name)

    def replace(function: Callable[..., Any]) -> None:
        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        setattr(owner, name, patched)

    return replace


def _deal_mini_batches(
    keeper: StateKeeper, groups: tuple[int, ...] | None, restart_epoch: bool
) -> None:
    if groups is not None:
        iterators._chunk_iterator = train_iterator.without_empty

    @_patch(Trainer, "get_train_iterator")
    def get_train_iterator(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = original(trainer, *args, **kwargs)
        by_world_size = (
            trainer.cfg.dataset.grouped_shuffling
            or trainer.cfg.distributed_training.fix_batches_to_gpus
            or type(iterator) not in (iterators.EpochBatchIterator, ElasticEpochBatchIterator)
        )
        if by_world_size:
            if not restart_epoch:
                raise ValueError(
                    f"the training data's iterator ({type(iterator).__name__}) has no position "
                    "that holds at another number of workers: pass --ray-restart-epoch"
                )
            train_iterator.restart_epoch_on_resize(iterator, keeper.world_size)
        elif type(iterator) is iterators.EpochBatchIterator:
            optimization = trainer.cfg.optimization
            freqs = optimization.update_freq
            layouts = [
                Layout(
                    world_size=keeper.world_size,
                    group=group,
                    fixed=groups is not None,
                    skip_remainder=optimization.skip_remainder_batch,
                )
                for group in groups or [freq * keeper.world_size for freq in freqs]
            ]
            ElasticEpochBatchIterator.adopt(
                iterator, lambda epoch: layouts[min(epoch, len(layouts)) - 1]
            )
        return iterator


def _early_stop() -> tuple[float, int] | None:
    state = fairseq_cli.train.should_stop_early
    return (state.best, state.num_runs) if hasattr(state, "best") else None


def _best() -> float | None:
    return getattr(checkpoint_utils.save_checkpoint, "best", None)


def _record_boundaries(keeper: StateKeeper) -> None:
    @_patch(fairseq_cli.train, "validate_and_save")
    def validate_and_save(
        original: Any, cfg: Any, trainer: Any, task: Any, itr: Any, subsets: Any, end: bool
    ) -> Any:
        update = trainer.get_num_updates()
        elastic = isinstance(itr, ElasticEpochBatchIterator)
        state = itr.position_state() if elastic else itr.state_dict()
        before = Boundary(update, state, _best(), _early_stop(), pending=elastic or not end)
        # neither after catching up nor where --fp16 skipped an update
        is_further = keeper.boundary is None or update > keeper.boundary.update
        keeper.record(before)
        if is_further:
            keeper.on_boundary(update)
        losses, should_stop = original(cfg, trainer, task, itr, subsets, end)
        if keeper.rank == 0:  # the others cannot know whether rank 0 got its checkpoint written
            step = (itr.epoch, losses[0]) if end else None
            state = itr.state_dict()
            after = Boundary(update, state, _best(), _early_stop(), losses[0], lr_step=step)
            keeper.record(after)
        if not should_stop:
            keeper.rest()
        keeper.on_doing(pace.LOADING if end else pace.TRAINING)
        return losses, should_stop

    @_patch(fairseq_cli.train, "train")
    def train(original: Any, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Any:
        if keeper.catch_up:
            keeper.catch_up = False
            losses, should_stop, end = _catch_up(keeper, cfg, trainer, task, epoch_itr)
            if should_stop or end:
                return losses, should_stop
        if _is_over(cfg, trainer):
            return [None], True  # stock trains one more update, or epoch, before it looks
        return original(cfg, trainer, task, epoch_itr)


def _is_over(cfg: Any, trainer: Any) -> bool:
    """Whether a limit had been reached when the state was saved; alike on all ranks."""
    max_update, patience = cfg.optimization.max_update, cfg.checkpoint.patience
    limit_s = cfg.optimization.stop_time_hours * 3600
    return bool(
        (max_update and trainer.get_num_updates() >= max_update)
        or (patience > 0 and (_early_stop() or (0, 0))[1] >= patience)
        or 0 < limit_s < trainer._previous_training_time
    )


def _catch_up(
    keeper: StateKeeper, cfg: Any, trainer: Any, task: Any, epoch_itr: Any
) -> tuple[Any, bool, bool]:
    """The validation and checkpoint that the last generation did not get to."""
    shuffle = epoch_itr.next_epoch_idx > cfg.dataset.curriculum
    itr = epoch_itr.next_epoch_itr(
        shuffle=shuffle, fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus
    )
    end = not itr.has_next()
    subsets = cfg.dataset.valid_subset.split(",")
    losses, should_stop = fairseq_cli.train.validate_and_save(
        cfg, trainer, task, epoch_itr, subsets, end
    )
    keeper.on_doing(pace.LOADING)  # still: a generation's first update takes longer
    if not end:
        epoch_itr._next_epoch_itr = itr
    return losses, should_stop, end


def _show_progress(keeper: StateKeeper) -> None:
    """What takes long between two boundaries is told of while it goes on."""
    for owner, name, what in (
        (fairseq_cli.train, "validate", pace.VALIDATING),
        (Trainer, "valid_step", pace.VALIDATING),
        (checkpoint_utils, "save_checkpoint", pace.SAVING),
    ):

        @_patch(owner, name)
        def told(original: Any, *args: Any, what: str = what, **kwargs: Any) -> Any:
            keeper.on_doing(what)
            return original(*args, **kwargs)


def _read_validation_data_once() -> None:
    """fairseq main reads all of it before each process's first update; the run's first has."""
    is_training = False

    @_patch(fairseq_cli.train, "train")
    def train(original: Any, *args: Any) -> Any:
        nonlocal is_training
        is_training = True
        return original(*args)

    @_patch(Trainer, "get_valid_iterator")
    def get_valid_iterator(original: Any, *args: Any, **kwargs: Any) -> Any:
        if is_training:
            return original(*args, **kwargs)
        return types.SimpleNamespace(next_epoch_itr=lambda **options: ())


def _extend_checkpoints(keeper: StateKeeper) -> None:
    written: list[str] = []

    @_patch(Trainer, "save_checkpoint")
    def save_state(original: Any, trainer: Any, filename: str, extra_state: Any) -> Any:
        if "train_iterator" in extra_state and keeper.boundary is not None:
            position, step = extra_state["train_iterator"], None
            if position.get("iterations_in_epoch") == 0:  # an epoch's end, its lr_step to come
                step = (position["epoch"] - 1, extra_state.get("val_loss"))
            boundary = dataclasses.replace(
                keeper.boundary, early_stop=_early_stop(), pending=False, lr_step=step
            )
            # without the 32-bit parameters: these files stay as large as stock fairseq's
            left_out = exact.collect(trainer, with_params=False)
            extra_state = {**extra_state, **extra(boundary, left_out)}
        path = original(trainer, filename, extra_state)
        written.append(filename)
        return path  # fairseq main tells the task

    @_patch(checkpoint_utils, "save_checkpoint")
    def save_checkpoint(
        original: Any, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any
    ) -> Any:
        written.clear()
        result = original(cfg, trainer, epoch_itr, val_loss)
        if written and keeper.rank == 0:
            last = f"checkpoint_last{trainer.checkpoint_suffix}.pt"
            path = written[0] if cfg.no_last_checkpoints else os.path.join(cfg.save_dir, last)
            keeper.on_checkpoint(path, trainer.get_num_updates())
        return result

    @_patch(PathManager, "copy")
    def copy_whole(original: Any, source: str, target: str, overwrite: bool = False) -> Any:
        """A copy that is killed half-way must not leave a torn checkpoint_last.pt."""
        if PathManager.path_requires_pathmanager(target):
            return original(source, target, overwrite)
        partial = f"{target}.tmp"
        original(source, partial, overwrite)
        os.replace(partial, target)
        return target

    PathManager.copy = staticmethod(PathManager.copy)


def _restore(keeper: StateKeeper, restore: str | None) -> None:
    @_patch(checkpoint_utils, "load_checkpoint")
    def load_checkpoint(original: Any, cfg: Any, trainer: Any, **passthrough: Any) -> Any:
        if restore is not None:
            # how the user's own first checkpoint is to be changed is done by now
            cfg = copy.deepcopy(cfg)
            with open_dict(cfg):
                cfg.restore_file, cfg.finetune_from_model = restore, None
                cfg.optimizer_overrides = "{}"
                cfg.reset_optimizer = cfg.reset_lr_scheduler = False
                cfg.reset_meters = cfg.reset_dataloader = False
        extra_state, epoch_itr = original(cfg, trainer, **passthrough)
        if restore is not None:  # fairseq counts starts there, and would add this one
            trainer._optim_history.pop()
        start = {"version": 2, "epoch": epoch_itr.epoch, "iterations_in_epoch": 0}
        boundary = Boundary(trainer.get_num_updates(), start)
        fine_tuning = cfg.finetune_from_model is not None and boundary.update == 0
        if extra_state is not None and not cfg.reset_dataloader and not fine_tuning:
            ours = extra_state.get(EXTRA) or {}
            if boundary.update > 0:  # the optimizer was not reset
                exact.restore(trainer, ours.get("left_out", {}))
            boundary = Boundary(
                trainer.get_num_updates(),
                extra_state["train_iterator"],
                extra_state.get("best"),
                ours.get("early_stop"),
                extra_state.get("val_loss"),
                ours.get("pending", False),
                ours.get("lr_step"),
            )
            if boundary.early_stop is not None:
                state = fairseq_cli.train.should_stop_early
                state.best, state.num_runs = boundary.early_stop
            if boundary.lr_step is not None:
                trainer.lr_step(*boundary.lr_step)
                boundary = dataclasses.replace(boundary, lr_step=None)
        keeper.catch_up = boundary.pending and boundary.update > 0
        keeper.attach(trainer, boundary)
        return extra_state, epoch_itr

    @_patch(checkpoint_utils, "load_checkpoint_to_cpu")
    def load_checkpoint_to_cpu(original: Any, *args: Any, **kwargs: Any) -> Any:
        return train_iterator.add_position(original(*args, **kwargs))

    @_patch(Trainer, "load_checkpoint")
    def load_state(original: Any, trainer: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Rank 0 says which file: the others may not see the folder it is in."""
        choice = [newest_whole_checkpoint(filename) if keeper.rank == 0 else None]
        if restore is not None and keeper.rank == 0 and choice[0] is None:
            raise FileNotFoundError(f"{restore} is gone: training cannot go on from it")
        if keeper.world_size > 1:
            torch.distributed.broadcast_object_list(choice, device=trainer.device)
        isfile = PathManager.isfile
        try:
            PathManager.isfile = staticmethod(lambda path: choice[0] is not None)
            return original(trainer, choice[0] or filename, *args, **kwargs)
        finally:
            PathManager.isfile = staticmethod(isfile)


def newest_whole_checkpoint(path: str) -> str | None:
    """`path`, or where it is torn the newest whole checkpoint beside it; None: no such file."""
    if not PathManager.isfile(path):
        return None
    if PathManager.path_requires_pathmanager(path) or _is_whole(path):
        return path
    folder = os.path.dirname(path)
    others = [entry.path for entry in os.scandir(folder) if entry.name.endswith(".pt")]
    whole = [other for other in others if "crash" not in other and _is_whole(other)]
    newest = max(whole, key=os.path.getmtime, default=None)
    if newest is None:
        raise ValueError(f"checkpoint {path} is cut short, and no other one is beside it")
    fairseq_cli.train.logger.warning(f"checkpoint {path} is cut short: going on from {newest}")
    return newest


def _is_whole(path: str) -> bool:
    """Whether nothing is missing from a file's end; its directory is the last thing written."""
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":  # before torch 1.6: a plain pickle, which cannot tell
            return True
    return zipfile.is_zipfile(path)
