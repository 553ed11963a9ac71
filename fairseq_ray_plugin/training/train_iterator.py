"""fairseq's training iterator, dealt by `batching.Layout` and positioned in mini-batches.

Stock fairseq keeps a position as one rank's count (`iterations_in_epoch`), which means other
samples at another world size. Here a position is (epoch, mini-batches used by all ranks).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from fairseq.data import data_utils, iterators

from fairseq_ray_plugin.training import batching, noise
from fairseq_ray_plugin.training.batching import Layout
from fairseq_ray_plugin.training.refusal import Refused

logger = logging.getLogger(__name__)

POSITION = "mini_batches"
"""Key beside fairseq's own in a checkpoint's `train_iterator`: mini-batches used in the epoch."""

ORDER = "order"
"""Key of the fingerprint of the order in which they were counted."""

LOADED_IN = "loaded_in"
"""Key of the epoch for which the data set was loaded; what it draws may hang on that."""


class ElasticEpochBatchIterator(iterators.EpochBatchIterator):
    """An EpochBatchIterator whose position survives a change of the world size."""

    loaded_in: int
    """The epoch for which its data set was loaded."""

    _layout_of: Callable[[int], Layout]
    _choice_of: Callable[[int], tuple[object, ...]] | None
    _restart_epoch: bool
    _order = ""
    """Fingerprint of this epoch's mini-batches."""

    _start = 0
    """Position at which the epoch's iterator began."""
    _start_count = 0
    """What the iterator's own count per rank was there."""

    @classmethod
    def adopt(
        cls,
        iterator: iterators.EpochBatchIterator,
        layout_of: Callable[[int], Layout],
        choice_of: Callable[[int], tuple[object, ...]] | None = None,
        loaded_in: int = 1,
        restart_epoch: bool = False,
    ) -> None:
        """Turn a stock iterator, just made, into an elastic one.

        Args:
            layout_of: asked by epoch.
            choice_of: what seeds an epoch's noise, beside the number of the mini-batch; None: the
                noise is stock's, and hangs on the loader process and all that it did before.
            loaded_in: the epoch for which its data set was loaded.
            restart_epoch: where a position counts in another order than is there, start the epoch
                again; otherwise that is refused.
        """
        iterator.__class__ = cls
        iterator._layout_of, iterator._choice_of = layout_of, choice_of
        iterator.loaded_in, iterator._restart_epoch = loaded_in, restart_epoch
        iterator.skip_remainder_batch = False  # the layout leaves the remainder out
        if layout_of(1).fixed:
            # data sets in loader processes that live on do not hear of the epochs, so their masks
            # are the first one's: a restart, which starts new ones, would change the training
            iterator.reuse_dataloader = False
            # not every data set knows that nothing makes an empty batch
            collate = iterator.collate_fn
            iterator.collate_fn = lambda samples: collate(samples) if samples else {}
        if choice_of is not None:
            if iterator.num_workers == 0:
                # a thread that makes batches ahead would draw from the generators of the model
                iterator.buffer_size = 0
            noise.seed_batches_of(iterator.dataset)

    def ordered_batches(
        self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool
    ) -> Sequence[Sequence[int]]:
        batches = self.frozen_batches
        self._order = batching.fingerprint(batches, f"{shuffle and self.seed}")
        if shuffle:
            batches = list(batches)
            with data_utils.numpy_seed(self.seed + epoch):
                np.random.shuffle(batches)
        layout, start, count = self._layout_of(epoch), self._start, self._start_count
        mine = layout.shard(batches, self.shard_id, start, [])
        if self._supports_prefetch:
            self.dataset.prefetch([index for batch in mine for index in batch])
        # FrozenBatchSampler drops as many as were counted before
        mine = [[]] * count + mine
        if self._choice_of is None:
            return mine
        choice, rank = self._choice_of(epoch), self.shard_id
        return noise.SeededBatches(
            mine, lambda place: (*choice, layout.number(rank, start, place - count))
        )

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
            ORDER: self._order,
            LOADED_IN: self.loaded_in,
        }

    def state_dict(self) -> dict[str, Any]:
        if not self.end_of_epoch():
            return self.position_state()
        return {**super().state_dict(), POSITION: 0, LOADED_IN: self.loaded_in}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if callable(self.batch_sampler) and self.epoch != state_dict["epoch"]:
            self._frozen_batches = None  # it makes other ones in each epoch
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
        if state_dict.get(ORDER, self._order) != self._order:
            self._other_order(position)
            return
        if iterator is None:  # the epoch is used up, but its end not yet dealt with
            iterator = iterators.CountingIterator([], start=self._start_count)
        self.shuffle = shuffle
        self._next_epoch_itr = iterator

    def _other_order(self, position: int) -> None:
        """The position counts in an order that is not this one: the epoch begins again, or ends."""
        change = (
            f"its mini-batches, or their order, are not those of which {position} have been used "
            "(the data, the seed or what makes batches has changed, or the task orders its data by "
            "something else than the epoch)"
        )
        if not self._restart_epoch:
            raise Refused(
                f"training cannot go on in epoch {self.epoch}: {change}; --ray-restart-epoch "
                "begins the epoch again"
            )
        logger.warning("epoch %s begins again: %s", self.epoch, change)


def order_of(iterator: Any) -> str:
    """The fingerprint of an iterator's order; "" where it has none."""
    return iterator._order if isinstance(iterator, ElasticEpochBatchIterator) else ""


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


def restart_epoch_on_resize(iterator: Any, world_size: int, loaded_in: int) -> None:
    """A stock iterator, loading the state of another world size, begins that epoch again.

    One that streams keeps no position at all: fairseq begins its epoch again at every start.
    """
    if "load_state_dict" in vars(iterator):
        return  # one that fairseq keeps over epochs does so already
    load_state_dict, state_dict_of = iterator.load_state_dict, iterator.state_dict

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
    iterator.state_dict = lambda: {**state_dict_of(), LOADED_IN: loaded_in}


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
