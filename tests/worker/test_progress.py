"""What a rank tells of itself."""

from fairseq_ray_plugin.protocol import Activity, Advanced
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


def test_other_ranks_tell_of_their_first_update_alone(clock, link, sent):
    told = Progress(link, rank=1, steps=Steps())
    for update in range(1, 31):
        told.advanced(update)
        told.doing(Activity.VALIDATING)
        clock[0] += 1
    assert [Advanced(1, 100.0)] == sent


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
