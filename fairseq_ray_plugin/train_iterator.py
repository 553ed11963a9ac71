"""fairseq's training iterator, dealt by `batching.Layout` and positioned in mini-batches.

Stock fairseq keeps a position as one rank's count (`iterations_in_epoch`), which means other
samples at another world size. Here a position is (epoch, mini-batches used by all ranks).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils, iterators

from fairseq_ray_plugin.batching import Layout

logger = logging.getLogger(__name__)

POSITION = "mini_batches"
"""Key beside fairseq's own in a checkpoint's `train_iterator`: mini-batches used in the epoch."""


class ElasticEpochBatchIterator(iterators.EpochBatchIterator):
    """An EpochBatchIterator whose position survives a change of the world size."""

    _layout_of: Callable[[int], Layout]
    _start = 0
    """Position at which the epoch's iterator began."""
    _start_count = 0
    """What the iterator's own count per rank was there."""

    @classmethod
    def adopt(
        cls, iterator: iterators.EpochBatchIterator, layout_of: Callable[[int], Layout]
    ) -> None:
        """Turn a stock iterator, just made, into an elastic one; `layout_of` is asked by epoch."""
        iterator.__class__ = cls
        iterator._layout_of = layout_of
        iterator.skip_remainder_batch = False  # the layout leaves the remainder out
        if layout_of(1).fixed:
            # loader processes that live on keep the first epoch's noise (masks): a restart,
            # which starts new ones, would change the training
            iterator.reuse_dataloader = False

    def ordered_batches(
        self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool
    ) -> list[list[int]]:
        batches = self.frozen_batches
        if shuffle:
            batches = list(batches)
            with data_utils.numpy_seed(self.seed + epoch):
                np.random.shuffle(batches)
        mine = self._layout_of(epoch).shard(batches, self.shard_id, self._start, [])
        if self._supports_prefetch:
            self.dataset.prefetch([index for batch in mine for index in batch])
        # FrozenBatchSampler drops as many as were counted before
        return [[]] * self._start_count + mine

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> iterators.CountingIterator:
        self._start = self._start_count = 0
        return super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus)

    @property
    def position(self) -> int:
        """Mini-batches of this epoch that all ranks together have used."""
        taken = self.iterations_in_epoch - self._start_count
        layout = self._layout_of(self.epoch)
        return layout.advance(len(self.frozen_batches), self._start, taken)

    def position_state(self) -> dict[str, Any]:
        """The state within this epoch, also when nothing of it is left."""
        return {
            "version": 2,
            "epoch": self.epoch,
            "iterations_in_epoch": self.position // self.num_shards,
            "shuffle": self.shuffle,
            POSITION: self.position,
        }

    def state_dict(self) -> dict[str, Any]:
        if not self.end_of_epoch():
            return self.position_state()
        return {**super().state_dict(), POSITION: 0}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
        self._next_epoch_itr = None
        position = state_dict.get(POSITION, 0)
        if position == 0:
            return
        if hasattr(self.dataset, "set_epoch"):
            # stock makes the iterator first, and its loader processes never hear of the epoch
            self.dataset.set_epoch(self.epoch)
        layout = self._layout_of(self.epoch)
        self._start = position
        self._start_count = position // layout.group * layout.per_rank
        shuffle = state_dict.get("shuffle", True)
        iterator = super()._get_iterator_for_epoch(self.epoch, shuffle, offset=self._start_count)
        if iterator is None:  # the epoch is used up, but its end not yet dealt with
            iterator = iterators.CountingIterator([], start=self._start_count)
        self.shuffle = shuffle
        self._next_epoch_itr = iterator


WORLD_SIZE = "world_size"
"""Key of the world size at which a checkpoint was written, put there when it is loaded."""


def add_position(state: dict[str, Any]) -> dict[str, Any]:
    """Give a checkpoint of stock fairseq the position that its own world size implies."""
    iterator = state.get("extra_state", {}).get("train_iterator")
    if iterator:
        config = state.get("cfg")
        if config is not None:
            world_size = config["distributed_training"]["distributed_world_size"]
        else:
            world_size = getattr(state.get("args"), "distributed_world_size", 1)
        iterator[WORLD_SIZE] = world_size
        if POSITION not in iterator and "iterations_in_epoch" in iterator:
            iterator[POSITION] = iterator["iterations_in_epoch"] * world_size
    return state


def restart_epoch_on_resize(iterator: Any, world_size: int) -> None:
    """A stock iterator, loading the state of another world size, begins that epoch again.

    One that streams keeps no position at all: fairseq begins its epoch again at every start.
    """
    load_state_dict = iterator.load_state_dict

    def load(state_dict: Mapping[str, Any]) -> None:
        epoch, before = state_dict["epoch"], state_dict.get(WORLD_SIZE, world_size)
        if "iterations_in_epoch" not in state_dict:
            logger.warning("epoch %s begins again: its iterator keeps no position", epoch)
        elif before != world_size:
            logger.warning(
                "epoch %s begins again: its order at %s workers is not the one at %s",
                *(epoch, before, world_size),
            )
            state_dict = {**state_dict, "iterations_in_epoch": 0}
        load_state_dict(state_dict)

    iterator.load_state_dict = load


def without_empty(
    iterator: Iterator[Any], chunk_size: int, skip_remainder_batch: bool = False
) -> Iterator[list[Any]]:
    """fairseq's `_chunk_iterator`, less the empty mini-batches that filled an update up.

    A rank that has nothing keeps one empty mini-batch, to take part in the update. fairseq
    itself drops a rank's whole update where its last mini-batch is empty (trainer.py:873).
    """
    for chunk in _stock_chunks(iterator, chunk_size, skip_remainder_batch):
        yield [sample for sample in chunk if sample] or chunk[:1]


_stock_chunks = iterators._chunk_iterator


def seed_by_mini_batch(trainer: Any, rank: int, world_size: int) -> None:
    """Make every random choice in a mini-batch depend on (seed, update, its place in the update).

    This takes the place of stock's seeding, once an update and alike on all ranks, by which
    dropout depends on the world size.
    """
    train_step = trainer.task.train_step
    seed_of_run = trainer.cfg.common.seed  # reading the configuration takes longer than seeding
    place = rank

    def begin_update() -> None:
        nonlocal place
        place = rank

    @functools.wraps(train_step)
    def seeded_train_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal place
        choice = f"{seed_of_run},{trainer.get_num_updates()},{place}"
        seed = int.from_bytes(hashlib.blake2b(choice.encode(), digest_size=4).digest(), "little")
        # not torch.manual_seed: before CUDA is in use it keeps a stack trace for each call
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        place += world_size
        return train_step(*args, **kwargs)

    trainer._set_seed = begin_update
    trainer.task.train_step = seeded_train_step
