"""How long is too long: learned from the run."""

import pytest

from fairseq_ray_plugin.control import hangs
from fairseq_ray_plugin.control.hangs import Pace
from fairseq_ray_plugin.protocol import Activity


def run(*gaps):
    """A pace that has seen training with these seconds between signs."""
    now = 100.0
    seen = Pace().begin(now)
    for gap in (50, *gaps):
        now += gap
        seen = seen.sign(now, Activity.TRAINING, now)
    return seen


def test_a_hang_takes_several_times_the_longest_pause_so_far():
    assert 10 * 20 == run(1, 20, 2).limit(None)


def test_a_short_stall_is_no_hang_however_fast_the_updates():
    assert hangs.LEAST_LIMIT_S == run(0.1, 0.1).limit(None)


def test_what_has_not_been_done_before_gets_more_time():
    first_update = run()
    assert 10 * 50 == first_update.limit(None), "loading took 50 s: an update may take as long"
    validation = run(0.1).sign(200, Activity.VALIDATING, 200)
    assert validation.limit(None) >= hangs.UNKNOWN_LIMIT_S
    validation = validation.sign(201, Activity.TRAINING, 201).sign(202, Activity.VALIDATING, 202)
    assert hangs.LEAST_LIMIT_S == validation.limit(None)


def test_loading_has_time_even_where_the_user_gives_less():
    assert hangs.LOADING_LIMIT_S == Pace().limit(5)
    assert hangs.LOADING_LIMIT_S == run(1).begin(300).limit(5)


@pytest.mark.parametrize("num_hangs", [0, 1, 2])
def test_each_hang_without_progress_doubles_what_was_learned_but_not_what_was_given(num_hangs):
    assert hangs.LEAST_LIMIT_S * 2**num_hangs == run(1).limit(None, num_hangs)
    assert 5 == run(1).limit(5, num_hangs)


def test_a_sign_that_arrives_late_is_no_long_pause():
    seen = run(1).sign(200.0, Activity.TRAINING, 153.0)  # the driver stood still
    assert 2 == seen.longest[Activity.TRAINING]
