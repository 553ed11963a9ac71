"""Patches fairseq so that a rank's state is known at each boundary, kept, and gone on from.

Its loop is patched in training/train_loop, its data in training/data_hook.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import fairseq_cli.train
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer
from omegaconf import open_dict

from fairseq_ray_plugin.checkpoints import claim
from fairseq_ray_plugin.checkpoints.memory import RAW
from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.options import last_checkpoint
from fairseq_ray_plugin.training import (
    agreement,
    deposit,
    exact,
    loaders,
    own_time,
    raw,
    record,
    source,
    state_file,
    train_iterator,
    train_loop,
    transfer,
    warm,
)
from fairseq_ray_plugin.training.boundary import EXTRA, Boundary, StateKeeper
from fairseq_ray_plugin.training.data_hook import DataHistory
from fairseq_ray_plugin.training.gate import Gate
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.train_iterator import order_of
from fairseq_ray_plugin.training.train_loop import early_stop


def add_checkpoint_hook(keeper: StateKeeper, history: DataHistory, gate: Gate) -> None:
    """Patch fairseq, in this process, so that `keeper` knows the state at each boundary.

    Args:
        history: is told of what is loaded.
        gate: knows which snapshot or checkpoint of this run to go on from, in its time.
    """
    train_loop.record_boundaries(keeper)
    train_loop.show_progress(keeper)
    train_loop.show_steps(keeper)
    own_time.measure(keeper.own)
    if not gate.is_first_start:
        train_loop.read_validation_data_once()
        transfer.without_first_sync()
    record.keep_record(keeper.points, keeper.on_logged, lambda: keeper.training)
    _extend_checkpoints(keeper)
    _restore(keeper, history, gate)


def _extend_checkpoints(keeper: StateKeeper) -> None:
    written: list[str] = []
    due: list[deposit.Plan] = []

    @patch(Trainer, "save_checkpoint")
    def save_state(original: Any, trainer: Any, filename: str, extra_state: Any) -> Any:
        if "train_iterator" in extra_state and keeper.boundary is not None:
            position, step = extra_state["train_iterator"], None
            if position.get("iterations_in_epoch") == 0:  # an epoch's end, its lr_step to come
                step = (position["epoch"] - 1, extra_state.get("val_loss"))
            boundary = dataclasses.replace(
                keeper.boundary, early_stop=early_stop(), pending=False, lr_step=step
            )
            if due and keeper.on_due(
                boundary.update,
                lambda path: keeper.put_by_due(path, boundary, extra_state, due[0]),
            ):
                raise deposit.PutBy
            # without the 32-bit parameters: these files stay as large as stock fairseq's
            left_out = exact.collect(trainer, with_params=False)
            extra_state = {**extra_state, **keeper.extra(boundary, left_out)}
        path = original(trainer, filename, extra_state)
        written.append(filename)
        return path  # fairseq main tells the task

    @patch(checkpoint_utils, "save_checkpoint")
    def save_checkpoint(
        original: Any, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any
    ) -> Any:
        agreement.check(trainer, order_of(epoch_itr))
        # training waits for no store: there who writes looks first
        has_place = keeper.rank == 0 and not keeper.save_dir.store
        if has_place and keeper.save_dir.is_overtaken(cfg.save_dir):
            raise Refused(f"{cfg.save_dir} {claim.OVERTAKEN}", spoiled=True)
        written.clear()
        # a task that is told of what was written, by fairseq main, is told when it was
        if keeper.rank == 0 and (keeper.save_dir.store or not hasattr(trainer.task, "post_save")):
            due[:] = [deposit.plan_of(cfg, trainer, epoch_itr, val_loss)]
        try:
            result = original(cfg, trainer, epoch_itr, val_loss)
        except deposit.PutBy:
            return None
        finally:
            due.clear()
        if written and keeper.rank == 0:
            path = written[0] if cfg.no_last_checkpoints else last_checkpoint(cfg)
            keeper.on_checkpoint(path, trainer.get_num_updates())
        return result

    @patch(checkpoint_utils, "torch_persistent_save")
    def save_whole(original: Any, state: Any, filename: str, async_write: bool = False) -> Any:
        if async_write or PathManager.path_requires_pathmanager(filename):
            return original(state, filename, async_write)
        # once: what fairseq's further tries append to the same file cannot be read
        state_file.write(state, filename)

    @patch(PathManager, "copy")
    def copy_whole(original: Any, path: str, target: str, overwrite: bool = False) -> Any:
        """A copy that is killed half-way must not leave a torn checkpoint_last.pt."""
        if PathManager.path_requires_pathmanager(target):
            return original(path, target, overwrite)
        state_file.copy(path, target)
        return target

    PathManager.copy = staticmethod(PathManager.copy)


def _restore(keeper: StateKeeper, history: DataHistory, gate: Gate) -> None:
    restore: str | None = None
    """What is to be gone on from; None: what the user's own options say."""

    chosen: str | None = None
    """And what is, when that is known and found."""

    @patch(checkpoint_utils, "load_checkpoint")
    def load_checkpoint(original: Any, cfg: Any, trainer: Any, **passthrough: Any) -> Any:
        nonlocal restore, chosen
        keeper.steps.end("model")
        warmed = warm.Warmed()
        if gate.is_closed:
            if gate.is_planned:  # else its cores would be missed by who saves the state
                warmed = warm.warm(trainer)
            history.read_ahead(trainer)
        restore = gate.wait()
        chosen = source.choose(cfg, trainer, keeper, restore)
        named = source.fetch_named(cfg, trainer, keeper) if chosen is None else None
        if named is not None:
            cfg = copy.deepcopy(cfg)
            with open_dict(cfg), open_dict(trainer.cfg):
                cfg.restore_file = named
                trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = False
        if chosen is not None:
            cfg = copy.deepcopy(cfg)
            with open_dict(cfg):
                cfg.restore_file, cfg.finetune_from_model = chosen, None
        if restore is not None:
            # how the user's own first checkpoint is to be changed is done by now
            with open_dict(cfg):
                cfg.optimizer_overrides = "{}"
                cfg.reset_optimizer = cfg.reset_lr_scheduler = False
                cfg.reset_meters = cfg.reset_dataloader = False
        extra_state, epoch_itr = original(cfg, trainer, **passthrough)
        source.forget_fetched(keeper)
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
        if chosen is not None and extra_state is not None:
            ours = extra_state.get(EXTRA) or {}
            keeper.training = ours.get("training")
            if "record" in ours:
                keeper.points.restore(ours["record"], boundary.update, boundary.pending)
        keeper.training = keeper.training or source.new_training(trainer, keeper)
        keeper.catch_up = boundary.pending and boundary.update > 0
        keeper.attach(trainer, boundary)
        loaders.keep_optimizer_from(trainer, warmed.unused)
        loaders.silence_orphans()
        keeper.steps.end("data")
        return extra_state, epoch_itr

    loaded: list[Any] = []
    """The state in `chosen`, once this rank has it."""

    read_checkpoint = checkpoint_utils.load_checkpoint_to_cpu

    @patch(checkpoint_utils, "load_checkpoint_to_cpu")
    def load_checkpoint_to_cpu(original: Any, *args: Any, **kwargs: Any) -> Any:
        if loaded:
            return loaded.pop()
        path = args[0] if args else kwargs["path"]
        if raw.is_raw(path):
            return train_iterator.add_position(raw.read(path))
        return train_iterator.add_position(original(*args, **kwargs))

    @patch(Trainer, "load_checkpoint")
    def load_state(
        original: Any,
        trainer: Any,
        filename: str,
        reset_optimizer: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Rank 0 says whether there is a file: the others may not see the folder it is in."""
        if restore is not None or keeper.save_dir.store:
            # neither with a --checkpoint-suffix nor read by every rank: one node alone has it
            with open_dict(trainer.cfg):
                trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = False
        path = chosen or filename
        load_everywhere = trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks
        if chosen is not None and transfer.is_alike_on_all_ranks(trainer):
            state = transfer.load(chosen, restore, read_checkpoint, trainer, keeper.folders)
            loaded.append(train_iterator.add_position(state))
            if chosen.endswith(RAW):  # of this very model
                transfer.take_over(trainer.get_model(), state["model"])
            with open_dict(trainer.cfg):  # as they have it by now
                trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        exists = chosen is not None or source.named_file_exists(path, trainer, keeper)
        isfile = PathManager.isfile
        try:
            PathManager.isfile = staticmethod(lambda path: exists)
            extra_state = original(trainer, path, reset_optimizer, *args, **kwargs)
        finally:
            PathManager.isfile = staticmethod(isfile)
            with open_dict(trainer.cfg):
                trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = load_everywhere
        if not reset_optimizer:
            _refuse_lost_optimizer(trainer, path, chosen)
        history.loaded(extra_state)
        keeper.steps.end("load")
        return extra_state


def _refuse_lost_optimizer(trainer: Any, path: str, chosen: str | None) -> None:
    """Without the optimizer's state the updates begin at 0 again, in the middle of the data.

    A model to begin with (--restore-file) may come without it, as ever with fairseq.
    """
    history = trainer._optim_history
    updates = history[-1].get("num_updates", 0) if history else 0
    if trainer.get_num_updates() >= updates:
        return
    if path in (chosen, last_checkpoint(trainer.cfg.checkpoint)):
        raise Refused(
            f"{path} has no optimizer state (--no-save-optimizer-state), so training cannot go on "
            f"from its update {updates}: start in another --save-dir, or begin anew with its "
            "parameters by --reset-optimizer"
        )
    fairseq_cli.train.logger.warning(
        f"{path} has no optimizer state: the optimizer and the count of updates begin anew"
    )
