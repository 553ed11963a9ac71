"""Every mini-batch once, in the same updates, whatever the world sizes were."""

import time
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ray_plugin.training.batching import Layout, fingerprint

EMPTY: list[int] = []


def updates(layout: Layout, batches: list, position: int) -> list[list]:
    """The updates from `position` on, each as the mini-batches that all ranks give it."""
    shards = [layout.shard(batches, r, position, EMPTY) for r in range(layout.world_size)]
    assert len({len(shard) for shard in shards}) == 1, "every rank gets equally many"
    per_rank = layout.per_rank
    result = []
    for begin in range(0, len(shards[0]), per_rank):
        rows = [shard[begin : begin + per_rank] for shard in shards]
        # rank r has every W-th mini-batch of the block: read it column by column
        columns = [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]
        result.append([batch for batch in columns if batch is not EMPTY])
    return result


@given(
    num_batches=st.integers(1, 120),
    group=st.integers(1, 12),
    stops=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=6),
    skip_remainder=st.booleans(),
)
def test_a_fixed_batch_has_the_same_updates_at_any_sequence_of_world_sizes(
    num_batches, group, stops, skip_remainder
):
    batches = [[index] for index in range(num_batches)]

    def layout(world_size: int) -> Layout:
        return Layout(
            world_size=min(world_size, group),
            group=group,
            fixed=True,
            skip_remainder=skip_remainder,
        )

    alone = updates(layout(1), batches, 0)
    position, seen = 0, []
    for world_size, num_updates in [*stops, (stops[0][0], num_batches)]:
        here = layout(world_size)
        done = updates(here, batches, position)[:num_updates]
        seen += done
        position = here.advance(num_batches, position, len(done) * here.per_rank)
    assert alone == seen
    if not skip_remainder:
        assert batches == [batch for update in seen for batch in update]


@given(
    num_batches=st.integers(1, 120),
    stops=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6
    ),
)
def test_without_a_fixed_batch_every_mini_batch_is_still_used_once(num_batches, stops):
    batches = [[index] for index in range(num_batches)]
    position, seen = 0, []
    for world_size, update_freq, num_updates in [*stops, (2, 1, num_batches)]:
        layout = Layout(world_size=world_size, group=world_size * update_freq, fixed=False)
        shards = [layout.shard(batches, r, position, EMPTY) for r in range(world_size)]
        taken = min(num_updates * update_freq, len(shards[0]))
        seen += [batch for shard in shards for batch in shard[:taken] if batch is not EMPTY]
        position = layout.advance(num_batches, position, taken)
    assert batches == sorted(seen)


@given(num_batches=st.integers(1, 100), world_size=st.integers(1, 5), freq=st.integers(1, 4))
def test_the_order_is_fairseqs_where_it_divides(num_batches, world_size, freq):
    batches = [[index] for index in range(num_batches)]
    layout = Layout(world_size=world_size, group=world_size * freq, fixed=False)
    for rank in range(world_size):
        # fairseq/data/iterators.py: ShardedIterator
        stock = batches[rank::world_size]
        stock += [EMPTY] * (-(-num_batches // world_size) - len(stock))
        assert stock == layout.shard(batches, rank, 0, EMPTY)


def test_more_ranks_than_mini_batches_leave_the_last_ones_empty():
    layout = Layout(world_size=3, group=2, fixed=True)
    assert [EMPTY] == layout.shard([[0], [1]], 2, 0, EMPTY)


def test_ten_million_mini_batches_are_dealt_in_two_seconds_and_200_mb():
    batches = range(10_000_000)
    for group in (16, 12):  # 8 ranks divide the one and not the other
        layout = Layout(world_size=8, group=group, fixed=True)
        begin = time.perf_counter()
        mine = layout.shard(batches, 3, group * 1000, -1)
        assert time.perf_counter() - begin < 2
        assert len(mine) > 10_000_000 // 8 - 10_000
    tracemalloc.start()
    layout.shard(batches, 3, 0, -1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


@given(
    world_size=st.integers(1, 12),
    group=st.integers(1, 12),
    fixed=st.booleans(),
    num_updates=st.integers(0, 40),
    num_batches=st.integers(0, 200),
)
def test_each_mini_batch_of_a_rank_knows_its_number(
    world_size, group, fixed, num_updates, num_batches
):
    if not fixed:
        group *= world_size
    layout = Layout(world_size=world_size, group=group, fixed=fixed)
    position = min(num_updates * group, num_batches)
    batches = list(range(num_batches))
    for rank in range(layout.world_size):
        for place, batch in enumerate(layout.shard(batches, rank, position, None)):
            assert batch in (None, layout.number(rank, position, place))


def test_a_fingerprint_tells_orders_apart_and_nothing_else():
    batches = [[i, i + 1] for i in range(0, 4000, 2)]
    expected = fingerprint(batches, "5")
    assert expected == fingerprint(tuple(np.array(batch) for batch in batches), "5")
    others = (
        *(batches[:-1], [*batches[:-1], [3998]], batches[::-1]),
        *([[0, 1, 2], [3], *batches[2:]], [[1, 0], *batches[1:]]),
    )
    assert expected not in {fingerprint(other, "5") for other in others}
    assert expected != fingerprint(batches, "6")


def test_a_fingerprint_costs_next_to_nothing_beside_making_the_mini_batches():
    from fairseq.data import data_utils

    sizes = np.random.RandomState(0).randint(10, 400, 1_000_000)

    def make():
        indices = np.lexsort([np.random.permutation(len(sizes)), sizes])
        made = data_utils.batch_by_size(
            indices, num_tokens_fn=None, num_tokens_vec=sizes[indices], max_sentences=8
        )
        np.random.shuffle(list(made))
        return made

    def seconds(function, *arguments):
        begin = time.process_time()
        result = function(*arguments)
        return time.process_time() - begin, result

    made = [seconds(make) for _ in range(3)]
    taken = [seconds(fingerprint, batches, "5")[0] for _, batches in made for _ in range(3)]
    assert min(taken) < 0.02 * min(duration for duration, _ in made)
