"""Randomness belongs to the mini-batch, whoever makes it and whatever happened before."""

import math
import random
import types

import numpy as np
import pytest
import torch
from fairseq.data import iterators

from fairseq_ray_plugin.training import noise
from fairseq_ray_plugin.training.batching import Layout
from fairseq_ray_plugin.training.train_iterator import ElasticEpochBatchIterator

NUM_BATCHES = 11


def draws():
    return (
        *(float(torch.rand(1)), np.random.rand(), random.random()),
        *(np.random.default_rng().random(), np.random.RandomState().rand()),
        np.random.Generator(np.random.PCG64()).random(),
    )


class NoisySentences(torch.utils.data.Dataset):
    def __len__(self):
        return 2 * NUM_BATCHES

    def __getitem__(self, index):
        return index, draws()


def collate(samples):
    return {"noise": [*samples, draws()]} if samples else {}


def noise_of_an_epoch(world_size, num_workers, epoch=2, state=None):
    """Samples of each mini-batch -> all that was drawn in making it."""
    made, middle = {}, None
    layout = Layout(world_size=world_size, group=4, fixed=True)
    for rank in range(world_size):
        iterator = iterators.EpochBatchIterator(
            dataset=NoisySentences(),
            collate_fn=collate,
            batch_sampler=[[2 * i, 2 * i + 1] for i in range(NUM_BATCHES)],
            num_shards=world_size,
            shard_id=rank,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=10,
        )
        ElasticEpochBatchIterator.adopt(iterator, lambda epoch: layout, lambda epoch: (3, epoch))
        if state is not None:
            iterator.load_state_dict(state)
        itr = iterator.next_epoch_itr()
        for batch in itr:
            draws()  # as the model does, meanwhile
            if batch:
                *samples, last = batch["noise"]
                made[tuple(index for index, _ in samples)] = (samples, last)
            if itr.n == 2 * layout.per_rank:
                middle = iterator.state_dict()
        # left to the collector of cycles, torch waits five seconds for each loader process
        del itr
        iterator._cur_epoch_itr = None
    return made, middle


@pytest.fixture(autouse=True)
def numpys_own_entropy():
    own = np.random.bit_generator.randbits
    noise.seed_unseeded_generators()
    yield
    np.random.bit_generator.randbits = own


def test_a_mini_batch_has_the_same_noise_at_any_number_of_ranks_and_loader_processes():
    expected, _ = noise_of_an_epoch(1, 0)
    values = [str(v) for samples, last in expected.values() for _, v in (*samples, (None, last))]
    assert 3 * NUM_BATCHES == len(values) == len(set(values)), "and each has its own"
    for world_size, num_workers in ((1, 1), (1, 2), (2, 0), (2, 1), (3, 2)):
        assert expected == noise_of_an_epoch(world_size, num_workers)[0]
    other, _ = noise_of_an_epoch(1, 0, epoch=3)
    assert not {str(v) for v, _ in expected.values()} & {str(v) for v, _ in other.values()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restart_in_mid_epoch_goes_on_with_the_same_noise(num_workers):
    expected, middle = noise_of_an_epoch(2, num_workers)
    made, _ = noise_of_an_epoch(3, num_workers, state=middle)
    assert NUM_BATCHES - 8 == len(made)
    assert made == {samples: expected[samples] for samples in made}


class Trainer:
    """What `seed_steps` knows of one."""

    def __init__(self, fixed_validation_seed=None):
        self.cfg = types.SimpleNamespace(
            common=types.SimpleNamespace(seed=3),
            dataset=types.SimpleNamespace(fixed_validation_seed=fixed_validation_seed),
        )
        self.task, self.drawn, self.updates = self, [], 7

    def get_num_updates(self):
        return self.updates

    def train_step(self):
        self.drawn.append((float(torch.rand(1)), float(np.random.rand())))

    valid_step = train_step


def test_dropout_depends_on_the_mini_batch_and_not_on_the_rank():
    def drawn(rank, world_size):
        trainer = Trainer()
        noise.seed_steps(trainer, rank, world_size)
        for _ in range(2):  # a second update starts its count again
            trainer._set_seed()
            for _ in range(math.ceil(6 / world_size)):
                trainer.task.train_step()
        half = len(trainer.drawn) // 2
        assert trainer.drawn[:half] == trainer.drawn[half:]
        return trainer.drawn[:half]

    alone = drawn(0, 1)
    assert 6 == len(set(alone))
    for world_size in (2, 3):
        for rank in range(world_size):
            assert alone[rank::world_size] == drawn(rank, world_size)


@pytest.mark.parametrize("fixed", [None, 9])
def test_a_validation_draws_alike_on_any_number_of_ranks_and_by_update_unless_that_is_fixed(fixed):
    def drawn(rank, world_size):
        trainer = Trainer(fixed)
        begin = noise.seed_steps(trainer, rank, world_size)
        validations = []
        for trainer.updates in (7, 8):
            trainer.drawn = []
            begin()
            for _ in range(6 // world_size):
                trainer.task.valid_step()
            validations.append(trainer.drawn)
        return validations

    alone = drawn(0, 1)
    assert (alone[0] == alone[1]) is (fixed is not None)
    for world_size in (2, 3):
        for rank in range(world_size):
            assert [v[rank::world_size] for v in alone] == drawn(rank, world_size)
