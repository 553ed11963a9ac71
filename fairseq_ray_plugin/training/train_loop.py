"""Patches fairseq's loop so that each boundary in it is known, and training can end there."""

from __future__ import annotations

import os
import types
from typing import Any

import fairseq_cli.train
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar
from fairseq.trainer import Trainer

from fairseq_ray_plugin.activity import Activity
from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import agreement, record
from fairseq_ray_plugin.training.boundary import Boundary, StateKeeper
from fairseq_ray_plugin.training.train_iterator import ElasticEpochBatchIterator, order_of


def early_stop() -> tuple[float, int] | None:
    state = fairseq_cli.train.should_stop_early
    return (state.best, state.num_runs) if hasattr(state, "best") else None


def _best() -> float | None:
    return getattr(checkpoint_utils.save_checkpoint, "best", None)


def record_boundaries(keeper: StateKeeper) -> None:
    agreed: list[int] = []
    """The update after which all ranks of this generation agreed: its first one."""

    @patch(fairseq_cli.train, "validate_and_save")
    def validate_and_save(
        original: Any, cfg: Any, trainer: Any, task: Any, itr: Any, subsets: Any, end: bool
    ) -> Any:
        update = trainer.get_num_updates()
        elastic = isinstance(itr, ElasticEpochBatchIterator)
        state = itr.position_state() if elastic else itr.state_dict()
        before = Boundary(update, state, _best(), early_stop(), pending=elastic or not end)
        # neither after catching up nor where --fp16 skipped an update
        is_further = keeper.boundary is None or update > keeper.boundary.update
        if is_further and not agreed:
            keeper.steps.end("optimizer")
            agreed.append(update)
            agreement.check(trainer, order_of(itr))
            keeper.steps.end("agree")
        keeper.record(before)
        if is_further:
            keeper.on_boundary(update)
        losses, should_stop = original(cfg, trainer, task, itr, subsets, end)
        if keeper.rank == 0:  # the others cannot know whether rank 0 got its checkpoint written
            step = (itr.epoch, losses[0]) if end else None
            state = itr.state_dict()
            after = Boundary(update, state, _best(), early_stop(), losses[0], lr_step=step)
            keeper.record(after)
        if not (should_stop or end):  # what it logs of an epoch is still to come
            keeper.rest()
        keeper.on_doing(Activity.LOADING if end else Activity.TRAINING)
        return losses, should_stop

    @patch(fairseq_cli.train, "train")
    def train(original: Any, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Any:
        if cfg.common.log_file is not None:  # stock opens it later, as the epoch begins
            record.log_to(cfg.common.log_file, keeper.points.purge_step)
        losses: Any = [None]
        should_stop = end = False
        if keeper.catch_up:
            keeper.catch_up = False
            losses, should_stop, end = _catch_up(keeper, cfg, trainer, task, epoch_itr)
        elif keeper.points.purge_step is not None:
            _end_epoch_before(keeper.points, cfg, trainer, epoch_itr)
        if should_stop or end or _is_over(cfg, trainer):
            _end_epoch(keeper.points, cfg, trainer, epoch_itr.epoch)
            # stock trains one more update, or epoch, before it looks
            should_stop = should_stop or not end
        else:
            losses, should_stop = original(cfg, trainer, task, epoch_itr)
        if not should_stop:
            keeper.rest()
        return losses, should_stop


def _end_epoch_before(points: record.Points, cfg: Any, trainer: Any, epoch_itr: Any) -> None:
    """Of the epoch that the state is at the end of what was averaged may not have been logged."""
    if epoch_itr.iterations_in_epoch == 0:
        _end_epoch(points, cfg, trainer, epoch_itr.next_epoch_idx - 1)


def _end_epoch(points: record.Points, cfg: Any, trainer: Any, epoch: int) -> None:
    """Log what was averaged over an epoch, unless that was done before the state was saved."""
    averages, update = metrics.get_meters("train"), trainer.get_num_updates()
    is_logged = points.has_averages(update)
    if not is_logged and not any(getattr(m, "count", 0) for m in (averages or {}).values()):
        return
    common, is_first = cfg.common, distributed_utils.is_master(cfg.distributed_training)
    bar = progress_bar.progress_bar(
        [],
        log_format=common.log_format,
        log_file=common.log_file,
        log_interval=common.log_interval,
        epoch=epoch,
        tensorboard_logdir=common.tensorboard_logdir if is_first else None,
        default_log_format="simple" if common.no_progress_bar else "tqdm",
        wandb_project=common.wandb_project if is_first else None,
        wandb_run_name=os.environ.get("WANDB_NAME", os.path.basename(cfg.checkpoint.save_dir)),
        azureml_logging=common.azureml_logging if is_first else False,
    )
    if not is_logged:  # else the bar, as it was made, has logged again what rank 0 may not have
        stats = fairseq_cli.train.get_training_stats(metrics.get_smoothed_values("train"))
        with record.aloud():
            bar.print(stats, tag=record.AVERAGES, step=update)
    metrics.reset_meters("train")


def _is_over(cfg: Any, trainer: Any) -> bool:
    """Whether a limit had been reached when the state was saved; alike on all ranks."""
    max_update, patience = cfg.optimization.max_update, cfg.checkpoint.patience
    limit_s = cfg.optimization.stop_time_hours * 3600
    return bool(
        (max_update and trainer.get_num_updates() >= max_update)
        or (patience > 0 and (early_stop() or (0, 0))[1] >= patience)
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
    keeper.on_doing(Activity.LOADING)  # still: a generation's first update takes longer
    if not end:
        epoch_itr._next_epoch_itr = itr
    return losses, should_stop, end


def show_progress(keeper: StateKeeper) -> None:
    """What takes long between two boundaries is told of while it goes on."""
    for owner, name, what in (
        (fairseq_cli.train, "validate", Activity.VALIDATING),
        (Trainer, "valid_step", Activity.VALIDATING),
        (checkpoint_utils, "save_checkpoint", Activity.SAVING),
    ):

        @patch(owner, name)
        def told(original: Any, *args: Any, what: str = what, **kwargs: Any) -> Any:
            keeper.on_doing(what)
            return original(*args, **kwargs)


def show_steps(keeper: StateKeeper) -> None:
    """When the batch of an update is there is told, which until then is waited for."""

    @patch(Trainer, "train_step")
    def train_step(original: Any, *args: Any, **kwargs: Any) -> Any:
        keeper.on_step()
        return original(*args, **kwargs)


def read_validation_data_once() -> None:
    """fairseq main reads all of it before each process's first update; the run's first has."""
    is_training = False

    @patch(fairseq_cli.train, "train")
    def train(original: Any, *args: Any) -> Any:
        nonlocal is_training
        is_training = True
        return original(*args)

    @patch(Trainer, "get_valid_iterator")
    def get_valid_iterator(original: Any, *args: Any, **kwargs: Any) -> Any:
        if is_training:
            return original(*args, **kwargs)
        return types.SimpleNamespace(next_epoch_itr=lambda **options: ())
