"""What a rank tells of itself."""

import pytest

from fairseq_ray_plugin.protocol import Activity, Advanced
from fairseq_ray_plugin.training.own_time import OwnTime
from fairseq_ray_plugin.training.steps import Steps
from fairseq_ray_plugin.worker.progress import Progress


def test_progress_is_told_once_a_second_and_whenever_something_else_begins(clock, link, sent):
    told = Progress(link, rank=0, steps=Steps())
    for update in range(1, 31):
        told.advanced(update)
        clock[0] += 0.1
        told.doing(Activity.TRAINING)
    assert 3 == len(sent)
    del sent[:]
    for _ in range(20):
        told.doing(Activity.VALIDATING)
        clock[0] += 0.1
    told.doing(Activity.TRAINING)
    expected = [Activity.VALIDATING, Activity.VALIDATING, Activity.TRAINING]
    assert expected == [message.activity for message in sent]


def test_other_ranks_tell_of_their_first_update_alone_where_nothing_is_timed(clock, link, sent):
    told = Progress(link, rank=1, steps=Steps())
    for update in range(1, 31):
        told.advanced(update)
        told.doing(Activity.VALIDATING)
        clock[0] += 1
    assert [Advanced(1, 100.0)] == sent


@pytest.mark.parametrize(("world_size", "times"), [(2, 10), (200, 5)])
@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_tells_what_mini_batches_take_it_alone(
    rank, world_size, times, clock, link, sent
):
    own = OwnTime()
    told = Progress(link, rank, Steps(), own.take, world_size)
    for update in range(1, 42):
        told.turn_to("training")  # the batch is there
        own.add(0.0, 0.1)
        clock[0] += 0.15
        told.advanced(update)
        told.doing(Activity.TRAINING)
        clock[0] += 0.1
    there = [message.own for message in sent if getattr(message, "own", None)]
    assert times == len(there), "once a second, or less where there are many ranks"
    assert 40 == sum(own.batches for own in there), "all but the first"
    for own in there:
        assert 0.1 * own.batches == pytest.approx(own.computing) == pytest.approx(own.data)


def test_a_validation_caught_up_with_is_told_and_the_first_update_after_it_at_once(
    clock, link, sent
):
    told = Progress(link, rank=0, steps=Steps())
    for activity in (Activity.VALIDATING, Activity.LOADING):
        told.doing(activity)
    told.advanced(41)
    assert [Activity.VALIDATING, Activity.LOADING] == [m.activity for m in sent[:2]]
    assert [Advanced(41, 100.0)] == sent[2:]


def test_the_first_update_is_told_with_what_came_before_it(clock, link, sent):
    steps = Steps()
    told = Progress(link, rank=0, steps=steps)
    for name, seconds in (("meet", 1), ("load", 2), ("gradients", 3), ("load", 4)):
        clock[0] += seconds
        steps.end(name)
    told.advanced(1)
    clock[0] += 1
    told.advanced(2)
    expected = (("meet", 1.0), ("load", 6.0), ("gradients", 3.0))
    assert [Advanced(1, 110.0, expected), Advanced(2, 111.0)] == sent


def test_time_goes_to_what_the_rank_does(clock, link):
    progress, begin = Progress(link, rank=0, steps=Steps()), clock[0]

    def after(seconds, do, *arguments):
        clock[0] += seconds
        do(*arguments)

    after(3, progress.doing, Activity.LOADING)
    after(2, progress.turn_to, "training")  # its first batch is there
    after(1, progress.advanced, 1)
    after(0, progress.doing, Activity.TRAINING)
    after(0.5, progress.turn_to, "training")
    after(1, progress.advanced, 2)
    after(0, progress.doing, Activity.VALIDATING)
    after(4, progress.doing, Activity.SAVING)
    after(2, progress.doing, Activity.LOADING)  # the next epoch's data
    after(8, progress.turn_to, "training")
    clock[0] += 0.25
    tally = progress.tally()
    assert (5, 2, 8.5) == (tally.loading, tally.training, tally.data)
    assert (4, 2, 0.25) == (tally.validating, tally.saving, tally.in_flight)
    assert clock[0] - begin == tally.total()
