"""fairseq's real iterators, one per rank, through any sequence of world sizes."""

import pytest
import torch
from fairseq.data import iterators
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_ray_plugin.training import train_iterator
from fairseq_ray_plugin.training.batching import Layout
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.train_iterator import ElasticEpochBatchIterator, add_position


class Sentences(torch.utils.data.Dataset):
    """Items are their own ids; remembers the epoch, as data sets with noise do."""

    def __init__(self, size):
        self.size, self.epoch = size, None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index, self.epoch

    def set_epoch(self, epoch):
        self.epoch = epoch


def collate(samples):
    return {"ids": [i for i, _ in samples], "epochs": {e for _, e in samples}}


def make(rank, world_size, num_batches, groups, freqs, skip=False, num_workers=0):
    """The training iterator of one rank, as fairseq's trainer makes it."""
    iterator = iterators.EpochBatchIterator(
        dataset=Sentences(2 * num_batches),
        collate_fn=collate,
        batch_sampler=[[2 * i, 2 * i + 1] for i in range(num_batches)],
        seed=5,
        num_shards=world_size,
        shard_id=rank,
        num_workers=num_workers,
        skip_remainder_batch=skip,
        reuse_dataloader=True,
    )

    def layout_of(epoch):
        by_epoch = groups or [freq * world_size for freq in freqs]
        return Layout(
            world_size=world_size,
            group=by_epoch[min(epoch, len(by_epoch)) - 1],
            fixed=groups is not None,
            skip_remainder=skip,
        )

    choice_of = (lambda epoch: (5, epoch)) if groups else None
    ElasticEpochBatchIterator.adopt(iterator, layout_of, choice_of)
    return iterator, layout_of


def train(world_size, state, num_updates, *, num_batches, groups=None, freqs=(1,), skip=False):
    """Up to `num_updates` updates on so many ranks from a saved state, like fairseq's own loop.

    Returns the updates, as (epoch, samples in order of the mini-batches), and the state after.
    """
    ranks = [make(r, world_size, num_batches, groups, freqs, skip) for r in range(world_size)]
    for iterator, _ in ranks:
        if state is not None:
            iterator.load_state_dict(state)
    done = []
    while len(done) < num_updates:
        chunks = []
        for iterator, layout_of in ranks:
            itr = iterator.next_epoch_itr()
            per_rank = layout_of(iterator.epoch).per_rank
            chunks.append(iterators.GroupedIterator(itr, per_rank, skip_remainder_batch=skip))
        assert len({len(c) - c.n for c in chunks}) == 1, "ranks disagree on what is left"
        while chunks[0].has_next() and len(done) < num_updates:
            rows = [next(chunk) for chunk in chunks]
            ids = [
                row[i]["ids"]
                for i in range(max(map(len, rows)))
                for row in rows
                if i < len(row) and row[i]
            ]
            epochs = {e for row in rows for sample in row if sample for e in sample["epochs"]}
            assert {ranks[0][0].epoch} == epochs, "the data set was at another epoch"
            done.append((ranks[0][0].epoch, ids))
        states = [iterator.state_dict() for iterator, _ in ranks]
        assert all(states[0] == state for state in states)
        if not any(ids for _, ids in done[-1:]) and num_batches <= 2:
            break
    return done, states[0]


@pytest.fixture(autouse=True)
def without_empty_chunks(monkeypatch):
    monkeypatch.setattr(iterators, "_chunk_iterator", train_iterator.without_empty)


@settings(deadline=None, max_examples=60)
@given(
    num_batches=st.integers(13, 40),
    groups=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    stops=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5),
    skip=st.booleans(),
)
def test_a_fixed_batch_has_the_same_updates_over_epochs_and_resizes(
    num_batches, groups, stops, skip
):
    def run(world_size, state, num_updates):
        return train(
            world_size, state, num_updates, num_batches=num_batches, groups=groups, skip=skip
        )

    alone, end = run(1, None, sum(count for _, count in stops))
    state, seen = None, []
    for world_size, num_updates in stops:
        done, state = run(world_size, state, num_updates)
        seen += done
    assert alone == seen
    assert (end["epoch"], end[train_iterator.POSITION]) == (
        state["epoch"],
        state[train_iterator.POSITION],
    )


@settings(deadline=None, max_examples=60)
@given(
    num_batches=st.integers(13, 40),
    freqs=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    stops=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=5),
)
def test_without_a_fixed_batch_no_sample_comes_twice_or_never_in_an_epoch(
    num_batches, freqs, stops
):
    state, seen = None, {}
    for world_size, num_updates in [*stops, (2, 100)]:
        done, state = train(world_size, state, num_updates, num_batches=num_batches, freqs=freqs)
        for epoch, batches in done:
            seen.setdefault(epoch, []).extend(i for ids in batches for i in ids)
    complete = [sorted(ids) for epoch, ids in seen.items() if epoch < max(seen)]
    assert complete and all(list(range(2 * num_batches)) == ids for ids in complete)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("skip", [False, True])
def test_an_undisturbed_run_has_exactly_the_order_of_stock_fairseq(world_size, skip):
    for rank in range(world_size):
        ours, _ = make(rank, world_size, 23, None, [2], skip)
        stock = iterators.EpochBatchIterator(
            dataset=Sentences(46),
            collate_fn=collate,
            batch_sampler=[[2 * i, 2 * i + 1] for i in range(23)],
            seed=5,
            num_shards=world_size,
            shard_id=rank,
            skip_remainder_batch=skip,
            reuse_dataloader=True,
        )
        for _ in range(3):
            expected, actual = (
                [
                    [sample.get("ids") for sample in chunk]
                    for chunk in iterators.GroupedIterator(itr.next_epoch_itr(), 2, skip)
                ]
                for itr in (stock, ours)
            )
            assert expected == actual
            assert stock.end_of_epoch() and ours.end_of_epoch()


def test_stock_fairseq_reads_our_position_and_we_read_stocks():
    _, state = train(2, None, 4, num_batches=23, freqs=[2])
    assert 8 == state["iterations_in_epoch"] and 16 == state[train_iterator.POSITION]
    config = {"distributed_training": {"distributed_world_size": 4}}
    stock = {"epoch": 1, "iterations_in_epoch": 5, "version": 2}
    checkpoint = {"cfg": config, "extra_state": {"train_iterator": dict(stock)}}
    assert 20 == add_position(checkpoint)["extra_state"]["train_iterator"]["mini_batches"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_processes_see_each_epoch_of_a_fixed_batch(num_workers):
    iterator, _ = make(0, 1, 13, [2], None, num_workers=num_workers)
    for epoch in (1, 2, 3):
        seen = [sample["epochs"] for sample in iterator.next_epoch_itr() if sample]
        assert [{epoch}] * 13 == seen
    # left to the collector of cycles, torch waits five seconds for each loader process
    iterator._cur_epoch_itr = None


def test_a_position_in_another_order_is_refused_or_begins_the_epoch_again():
    _, state = train(2, None, 4, num_batches=23, freqs=[2])
    for num_batches in (22, 24):
        iterator, _ = make(0, 2, num_batches, None, [2])
        with pytest.raises(Refused, match="epoch 1: its mini-batches, or their order.* 16 have"):
            iterator.load_state_dict(state)
    iterator.seed += 1
    iterator._restart_epoch = True
    iterator.load_state_dict(state)
    assert 0 == iterator.position and 1 == iterator.next_epoch_idx
    assert 12 == len(iterator.next_epoch_itr())
    for other in ({"seed": 6}, {"shuffle": False}):
        iterator, _ = make(0, 2, 23, None, [2])
        iterator.seed = other.get("seed", 5)
        with pytest.raises(Refused):
            iterator.load_state_dict(state | other)
    iterator, _ = make(1, 3, 23, None, [2])
    iterator.load_state_dict(state)
    assert 16 == iterator.position, "it is the same order at any number of ranks"
