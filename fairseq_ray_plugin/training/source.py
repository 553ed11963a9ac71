"""Which file a rank's state comes from. Rank 0 decides: the others may not see the folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from fairseq_ray_plugin.checkpoints import catalog, contents, stores
from fairseq_ray_plugin.checkpoints.archive import Opaque
from fairseq_ray_plugin.checkpoints.contents import Summary
from fairseq_ray_plugin.checkpoints.stored import Stored
from fairseq_ray_plugin.checkpoints.sums import Damaged
from fairseq_ray_plugin.compat.encoder_copies import ORIGINALS
from fairseq_ray_plugin.options import last_checkpoint
from fairseq_ray_plugin.training.boundary import StateKeeper
from fairseq_ray_plugin.training.refusal import Refused

logger = logging.getLogger(__name__)

DEFAULT_FILE = "checkpoint_last.pt"
"""What --restore-file is where it is not given."""

Answer = TypeVar("Answer")
Shapes = Mapping[str, tuple[int, ...] | None]


def goes_on(cfg: Any) -> bool:
    """Whether a start goes on with the training in the save dir, as far as it has come.

    Args:
        cfg: fairseq's CheckpointConfig.
    """
    resets = (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
    return cfg.restore_file == DEFAULT_FILE and not any(resets)


def choose(cfg: Any, trainer: Any, keeper: StateKeeper, restore: str | None) -> str | None:
    """The file to go on from, the same on every rank; None: what the user's options name, if any.

    Args:
        cfg: fairseq's CheckpointConfig.
        restore: what the driver has chosen.

    Raises:
        Refused: there is no whole one.
    """

    def chosen() -> str | None:
        if keeper.save_dir.store and _is_sharded(trainer):
            raise Refused(
                f"--save-dir {stores.shown(keeper.save_dir.store)}: each rank has a file of its "
                "own here, which goes to folders alone: give a folder"
            )
        if restore is None:
            may_go_on = goes_on(cfg) and _is_local(cfg.save_dir) and not _is_sharded(trainer)
            return _newest(cfg, trainer, keeper) if may_go_on else None
        if stores.is_url(restore):
            return _from_store(restore, cfg, trainer, keeper)
        if not _is_local(restore):
            return restore
        if not _is_in(restore, cfg.save_dir):
            return _snapshot(restore)
        try:
            _verify(restore)
            return restore
        except (Damaged, OSError) as error:
            logger.warning("checkpoint %s cannot be gone on from: %s", restore, error)
        return _another(restore, cfg, trainer, keeper)

    return by_rank_0(chosen, trainer, keeper)


def fetch_named(cfg: Any, trainer: Any, keeper: StateKeeper) -> str | None:
    """What the user's options name in a store: its local path; None: they name nothing there.

    It is on rank 0's node alone, until `forget_fetched`.

    Raises:
        Refused: it is damaged, or the store cannot be read.
    """
    url, suffix = cfg.restore_file, trainer.checkpoint_suffix or ""
    if url == DEFAULT_FILE and keeper.save_dir.store:
        url = f"{keeper.save_dir.store}/{url}"
    if not stores.is_url(url):
        return None
    folder, _, name = url.rpartition("/")

    def fetch() -> None:
        # fairseq puts the suffix into its name; one that is missing is fairseq's to tell of
        with contextlib.suppress(FileNotFoundError), _as_refusals(url):
            Stored(folder, keeper.save_dir.passage).fetch(name.replace(".pt", suffix + ".pt"))

    by_rank_0(fetch, trainer, keeper)
    is_default = cfg.restore_file == DEFAULT_FILE
    return DEFAULT_FILE if is_default else os.path.join(keeper.save_dir.passage, name)


def forget_fetched(keeper: StateKeeper) -> None:
    """What came from a store has been read, and takes no room any more."""
    if keeper.save_dir.passage:
        shutil.rmtree(keeper.save_dir.passage, ignore_errors=True)


def _stored(keeper: StateKeeper) -> Stored:
    return Stored(keeper.save_dir.store, keeper.save_dir.passage)


def _from_store(restore: str, cfg: Any, trainer: Any, keeper: StateKeeper) -> str:
    """A checkpoint of this run, fetched and verified, or another one in its place."""
    try:
        with _as_refusals(restore, but=Damaged):
            return Stored(keeper.save_dir.store, keeper.save_dir.passage).fetch(
                os.path.basename(restore)
            )
    except (Damaged, OSError) as error:
        logger.warning("checkpoint %s cannot be gone on from: %s", restore, error)
    return _another(restore, cfg, trainer, keeper)


def _another(restore: str, cfg: Any, trainer: Any, keeper: StateKeeper) -> str:
    path = _newest(cfg, trainer, keeper)
    if path is None:
        save_dir = stores.shown(keeper.save_dir.store) or cfg.save_dir
        raise Refused(f"{restore} is gone, and no other checkpoint is in {save_dir}")
    return path


@contextlib.contextmanager
def _as_refusals(url: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What a store will not do is no reason to try again, as it would be where it is away."""
    try:
        yield
    except stores.Unreachable:
        raise
    except but:
        raise
    except stores.Damaged as error:
        raise Refused(f"{stores.shown(url)} is damaged: {error}; name another one") from error
    except stores.StoreError as error:
        raise Refused(str(error)) from error


def named_file_exists(path: str, trainer: Any, keeper: StateKeeper) -> bool:
    """Whether there is a file that the user's options name; the same on every rank.

    Raises:
        Refused: it is damaged. No other one is what was asked for.
    """

    def exists() -> bool:
        if not PathManager.isfile(path):
            return False
        try:
            if _is_local(path):
                _verify(path)
        except (Damaged, OSError) as error:
            raise Refused(f"{path} is damaged: {error}; name another one") from error
        return True

    return by_rank_0(exists, trainer, keeper)


def new_training(trainer: Any, keeper: StateKeeper) -> str:
    """What identifies a training that begins now; the same on every rank."""
    return by_rank_0(lambda: uuid.uuid4().hex, trainer, keeper)


def by_rank_0(ask: Callable[[], Answer], trainer: Any, keeper: StateKeeper) -> Answer:
    """What rank 0 finds, on every rank; a refusal, too."""
    outcome: list[Any] = [None]
    if keeper.rank == 0:
        try:
            outcome = [ask()]
        except Refused as refusal:
            outcome = [refusal]
    if keeper.world_size > 1:
        torch.distributed.broadcast_object_list(outcome, device=trainer.device)
    if isinstance(outcome[0], Refused):
        raise outcome[0]
    answer: Answer = outcome[0]
    return answer


def _newest(cfg: Any, trainer: Any, keeper: StateKeeper) -> str | None:
    name = os.path.basename(last_checkpoint(cfg))
    try:
        with _as_refusals(keeper.save_dir.store, but=Damaged):
            place: catalog.Place = catalog.Folder(cfg.save_dir)
            if keeper.save_dir.store:
                place = _stored(keeper)
            return catalog.newest(place, _is_such_as(trainer), name)
    except catalog.NoneWhole as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Refused(f"--save-dir {cfg.save_dir} cannot be read: {error.strerror}") from error


def _is_sharded(trainer: Any) -> bool:
    """Whether each rank has a file of its own, by its --checkpoint-suffix."""
    own_suffix = trainer.checkpoint_suffix != (trainer.cfg.checkpoint.checkpoint_suffix or "")
    return own_suffix or trainer.cfg.common.model_parallel_size > 1


def _is_such_as(trainer: Any) -> Callable[[Summary], bool]:
    """Tells the checkpoints of a training such as the trainer's, whatever they are called."""
    cfg = trainer.cfg
    if OmegaConf.is_config(cfg):  # as it is saved
        cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    own = contents.options_of(cfg)
    shapes: Shapes | None = None
    if not trainer.is_fsdp:  # whose state is gathered from all ranks
        state = trainer.get_model().state_dict()
        shapes = {
            name: tuple(value.shape) if isinstance(value, torch.Tensor) else None
            for name, value in state.items()
        }

    def is_such(summary: Summary) -> bool:
        if (own.arch, own.task, own.suffix) != (summary.arch, summary.task, summary.suffix):
            return False
        # another one may be what the fine-tuning began with
        if own.finetuned_from not in (None, summary.finetuned_from):
            return False
        return shapes is None or _fit(shapes, _without_copies(summary.shapes))

    return is_such


def _fit(own: Shapes, others: Shapes) -> bool:
    return own.keys() == others.keys() and all(
        None in (shape, others[name]) or shape == others[name] for name, shape in own.items()
    )


def _without_copies(shapes: Shapes) -> Shapes:
    """Less those that stock fairseq's encoder layers have twice (compat/encoder_copies)."""

    def is_copy(name: str) -> bool:
        last = name.rpartition(".")[2]
        return last in ORIGINALS and name.removesuffix(last) + ORIGINALS[last] in shapes

    return {name: shape for name, shape in shapes.items() if not is_copy(name)}


def _verify(path: str) -> None:
    try:
        catalog.verify(path)
    except Opaque:
        logger.warning("%s is of before torch 1.6: nothing tells whether it is whole", path)


def _snapshot(path: str) -> str:
    """A snapshot lies in memory, and was whole before it had its name: it is looked at, no more."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is gone: training cannot go on from it")
    return path


def _is_local(path: str) -> bool:
    return not PathManager.path_requires_pathmanager(path)


def _is_in(path: str, folder: str) -> bool:
    return os.path.dirname(os.path.abspath(path)) == os.path.abspath(folder)
