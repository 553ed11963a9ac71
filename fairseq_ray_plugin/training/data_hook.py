"""Patches fairseq so that its data is dealt, ordered and seeded by us."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fairseq.data import iterators
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import noise, train_iterator
from fairseq_ray_plugin.training.batching import Layout
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.train_iterator import LOADED_IN, ElasticEpochBatchIterator

STOCK_BATCHES = FairseqTask.get_batch_iterator


class DataHistory:
    """The epoch for which the training data was loaded, in this process or the one before it.

    Undisturbed, fairseq loads a data set once and tells it of each epoch that begins. What it
    draws may hang on both: the virtual epochs of a multilingual data set are windows on what was
    drawn when it was loaded, and fairseq main cuts mini-batches by the epoch in which that was. So
    a restart loads the data as if for that epoch, and tells it of those since.
    """

    def __init__(self) -> None:
        self.loaded_in = 1
        self._resumes: int | None = None
        self._after: tuple[Any, ...] | None = None
        """Random generators as they are after what was read ahead, if it is not in use yet."""

    def read_ahead(self, trainer: Any) -> None:
        """The data is loaded before it is known what is gone on from, as in a run's first epoch.

        It is of use where that one is the epoch to load it in, as nearly always; where not, nothing
        has happened. Fails as the loading of data does.
        """
        task, subset = trainer.task, trainer.cfg.dataset.train_subset
        if task.has_sharded_data("train"):
            return  # each epoch loads a part of its own
        before = _generators()
        task.load_dataset(subset, epoch=1, combine=True, data_selector=None, tpu=trainer.tpu)
        # mini-batches, too, where the task is known to make them once
        is_stock = getattr(type(task), "get_batch_iterator", None) is STOCK_BATCHES
        if is_stock and task.can_reuse_epoch_itr(task.dataset(subset)):
            trainer.get_train_iterator(1, load_dataset=False)
        self._after = _generators()
        _set_generators(before)

    def loaded(self, extra_state: Mapping[str, Any] | None) -> None:
        """A checkpoint's state is about to be gone on from."""
        self._resumes = (extra_state or {}).get("train_iterator", {}).get(LOADED_IN)

    def get_iterator(self, make: Any, trainer: Any, epoch: int, load: bool, **options: Any) -> Any:
        """What `make`, Trainer.get_train_iterator, would have returned in a run never disturbed."""
        task, subset = trainer.task, trainer.cfg.dataset.train_subset
        first = min(epoch, self._resumes or epoch) if load else epoch
        self._resumes = None
        if self._after is not None and load:
            if first == 1:
                _set_generators(self._after)
                load = False
            self._after = None
        before = task.datasets.get(subset)
        iterator = make(trainer, first, load_dataset=load, **options)
        dataset = task.datasets.get(subset)
        if dataset is not before:
            self.loaded_in = first
        if first < epoch:
            for since in range(first + 1, epoch + 1):
                if hasattr(dataset, "set_epoch"):
                    dataset.set_epoch(since)
            iterator = make(trainer, epoch, load_dataset=False, **options)
        return iterator


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_generators(states: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)


def add_data_hook(
    rank: int, world_size: int, groups: tuple[int, ...] | None, restart_epoch: bool
) -> DataHistory:
    """Patch fairseq, in this process.

    Args:
        rank, world_size: of this generation.
        groups: mini-batches in an update by epoch, with --fix-batch-size; else None.
        restart_epoch: where positions do not survive a resize, start the epoch again.
    """
    history = DataHistory()

    @patch(Trainer, "get_train_iterator")
    def get_train_iterator(
        original: Any,
        trainer: Any,
        epoch: int,
        combine: bool = True,
        load_dataset: bool = True,
        **options: Any,
    ) -> Any:
        iterator = history.get_iterator(
            original, trainer, epoch, load_dataset, combine=combine, **options
        )
        by_world_size = (
            trainer.cfg.dataset.grouped_shuffling
            or trainer.cfg.distributed_training.fix_batches_to_gpus
            or type(iterator) not in (iterators.EpochBatchIterator, ElasticEpochBatchIterator)
            or iterator.num_shards != world_size  # the task gives each rank a part of its own
        )
        if by_world_size:
            if any(group % world_size for group in groups or ()):
                raise Refused(
                    f"--fix-batch-size makes {', '.join(map(str, groups or ()))} mini-batches an "
                    f"update, and this training data can be dealt to {world_size} workers only by "
                    f"multiples of {world_size}: take another size"
                )
            if not restart_epoch:
                raise Refused(
                    f"the training data's iterator ({type(iterator).__name__}) has no position "
                    "that holds at another number of workers: pass --ray-restart-epoch"
                )
            train_iterator.restart_epoch_on_resize(iterator, world_size, history.loaded_in)
        elif type(iterator) is iterators.EpochBatchIterator:
            optimization, seed = trainer.cfg.optimization, trainer.cfg.common.seed
            layouts = [
                Layout(
                    world_size=world_size,
                    group=group,
                    fixed=groups is not None,
                    skip_remainder=optimization.skip_remainder_batch,
                )
                for group in groups or [freq * world_size for freq in optimization.update_freq]
            ]
            ElasticEpochBatchIterator.adopt(
                iterator,
                lambda epoch: layouts[min(epoch, len(layouts)) - 1],
                (lambda epoch: (seed, epoch)) if groups is not None else None,
                history.loaded_in,
                restart_epoch,
            )
        return iterator

    if groups is not None:
        iterators._chunk_iterator = train_iterator.without_empty
        noise.seed_unseeded_generators()
        _seed_steps(rank, world_size)
    return history


def _seed_steps(rank: int, world_size: int) -> None:
    @patch(Trainer, "__init__")
    def seeded(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        original(trainer, *args, **kwargs)
        trainer.begin_validation = noise.seed_steps(trainer, rank, world_size)

    @patch(Trainer, "get_valid_iterator")
    def get_valid_iterator(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        """The noise of validation data is that of one rank, too."""
        iterator = original(trainer, *args, **kwargs)
        trainer.begin_validation()
        if type(iterator) is iterators.EpochBatchIterator:
            layout = Layout(world_size=world_size, group=world_size, fixed=False)
            ElasticEpochBatchIterator.adopt(
                iterator, lambda epoch: layout, lambda epoch: noise.validation_choice(trainer)
            )
        return iterator
