"""Randomness that belongs to a mini-batch, in whatever process and by whichever rank it is drawn.

With --fix-batch-size: crops, masks and other noise of the data by (seed, epoch, mini-batch), in
the process that makes the batch; dropout and what else a model draws by (seed, update,
mini-batch's place in the update), in the rank. This takes the place of stock's seeding, once an
update and alike on all ranks, by which the noise depends on the world size.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch


def seed_all(*choice: object) -> None:
    """Every default generator of this process goes on from a seed made of `choice`."""
    text = ",".join(map(str, choice))
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    # not torch.manual_seed: before CUDA is in use it keeps a stack trace for each call
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def seed_unseeded_generators() -> None:
    """numpy's own generators that are made without a seed begin from Python's default one.

    fairseq main masks by such (data/data_utils.py, compute_mask_indices); numpy would ask the
    operating system, and no two trainings would be alike.
    """
    np.random.bit_generator.randbits = random.getrandbits


class MiniBatch(list[Any]):
    """Indices of samples, and what seeds the making of a batch of them."""

    choice: tuple[object, ...] = ()


class SeededBatches(Sequence[MiniBatch]):
    """The mini-batches of one rank in an epoch, each made a MiniBatch when it is asked for.

    Args:
        batches: their samples' indices.
        choice_of: what seeds the one at a place in `batches`.
    """

    def __init__(
        self, batches: Sequence[Any], choice_of: Callable[[int], tuple[object, ...]], first: int = 0
    ) -> None:
        self.batches, self.choice_of, self.first = batches, choice_of, first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):  # fairseq drops what has been used
            begin, end, step = key.indices(len(self))
            assert (end, step) == (len(self), 1), "only from somewhere to the end"
            return SeededBatches(self.batches, self.choice_of, self.first + begin)
        if not 0 <= key < len(self):
            raise IndexError(key)
        batch = MiniBatch(self.batches[self.first + key])
        batch.choice = self.choice_of(self.first + key)
        return batch

    def __iter__(self) -> Iterator[MiniBatch]:
        return (self[place] for place in range(len(self)))


def seed_batches_of(dataset: Any) -> None:
    """`dataset` makes each MiniBatch's samples, and then its batch, from the seed that it brings.

    torch asks for them by `__getitems__` and collates what it gets, in one process and at once.
    """
    if "__getitems__" in vars(dataset):
        return  # it does so already
    get_items = getattr(dataset, "__getitems__", None)

    def get_seeded_items(batch: Sequence[Any]) -> Any:
        if isinstance(batch, MiniBatch):
            seed_all(*batch.choice)
        return get_items(batch) if get_items else [dataset[index] for index in batch]

    dataset.__getitems__ = get_seeded_items


def seed_steps(trainer: Any, rank: int, world_size: int) -> Callable[[], None]:
    """A model's own randomness belongs to the mini-batch; returns what begins a validation."""
    task, seed = trainer.task, trainer.cfg.common.seed  # reading it takes longer than seeding
    train_step, valid_step = task.train_step, task.valid_step
    place = rank

    def begin() -> None:
        nonlocal place
        place = rank

    @functools.wraps(train_step)
    def seeded_train_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal place
        seed_all(seed, trainer.get_num_updates(), place)
        place += world_size
        return train_step(*args, **kwargs)

    @functools.wraps(valid_step)
    def seeded_valid_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal place
        seed_all("valid", *validation_choice(trainer), place)
        place += world_size
        return valid_step(*args, **kwargs)

    trainer._set_seed = begin
    task.train_step, task.valid_step = seeded_train_step, seeded_valid_step
    return begin


def validation_choice(trainer: Any) -> tuple[object, ...]:
    """What seeds a validation: the user's --fixed-validation-seed, or the seed and the update."""
    fixed = trainer.cfg.dataset.fixed_validation_seed
    return (fixed,) if fixed is not None else (trainer.cfg.common.seed, trainer.get_num_updates())
