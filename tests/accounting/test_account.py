"""Where the time of a run went: seconds add up, and each is where it belongs."""

import time

import journals
import pytest
from hypothesis import given, settings
from journals import Made

from fairseq_ray_plugin.accounting.account import account, percentile
from fairseq_ray_plugin.accounting.reader import Empty
from fairseq_ray_plugin.accounting.spent import Spent


def spent(made):
    told = account(made.lines)
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots)
    return {kind: round(s, 3) for kind, s in told.spent.items() if round(s, 3)}


def a_start():
    """Two workers import for 5 s, and begin: 0.5 s up to the first update."""
    return Made().come("w0", "w1", ready_after=5).begin("w0", "w1")


def test_an_undisturbed_run_divides_as_its_ranks_say():
    made = a_start().progress(
        10, after=9.5, final=True, loading=0.3, training=8.0, data=0.7, validating=0.6, saving=0.3
    )
    assert {
        Spent.PROGRAM_STARTUP: 2 * 5.4,  # imports, fork to first batch
        Spent.PRODUCTIVE_TRAINING: 2 * 8.0,
        Spent.DATA_LOADING: 2 * 0.7,
        Spent.VALIDATION: 2 * 0.6,
        Spent.CHECKPOINT_SAVE: 2 * 0.3,
    } == spent(made.end())


def test_a_kill_costs_the_update_in_flight_the_hold_and_the_next_start():
    made = a_start()
    # 9.5 s after the order: 0.4 s of loading, 9 updates of a second, 0.1 s of the tenth
    made.now += 9.0
    made.stop("LOST: rank 1", 0.2, node="n1", update=9, loading=0.3, training=9.0, in_flight=0.1)
    made.write("slots", gone=["w1"])
    made.now += 0.3  # the state is saved
    made.begin("w0", source=9, started=0.1, advanced=1.2)
    made.progress(19, after=9.0, final=True, loading=0.2, training=10.0).end()
    assert {
        Spent.PROGRAM_STARTUP: pytest.approx(2 * 5.4),
        Spent.PRODUCTIVE_TRAINING: pytest.approx(2 * 9.0 + 10.0),
        Spent.WASTED_PROGRESS: pytest.approx(2 * 0.1),
        Spent.HOLD_AND_SAVE: pytest.approx(2 * 0.2 + 0.3),
        Spent.CHECKPOINT_RESTORE: pytest.approx(0.3),
        Spent.INFRASTRUCTURE_RECOVERY: pytest.approx(0.3 + 10.3),
    } == spent(made)
    told = account(made.lines)
    (stop,) = told.failures
    assert stop.cost == pytest.approx(0.2 + 0.4 + 0.3 + 0.3)
    assert stop.seconds == pytest.approx(0.1 + 0.2 + 0.3 + 1.3)
    assert [("LOST", 1)] == [(blame.what, blame.count) for blame in told.causes]
    assert [("n1", 1)] == [(blame.what, blame.count) for blame in told.nodes]
    assert told.between_failures_s == pytest.approx(told.wall_s)
    assert [2, 1] == told.sizes


def test_what_a_hang_cost_beyond_an_update_is_its_detection():
    made = a_start()
    made.now += 39.0
    made.stop("HUNG: no progress", 0.5, update=9, loading=0.3, training=9.0, in_flight=30.1)
    seconds = spent(made.end("failed"))
    assert 2 * 1.0 == seconds[Spent.WASTED_PROGRESS]
    assert 2 * 29.1 == pytest.approx(seconds[Spent.DETECTION])


def test_where_all_died_the_updates_since_the_snapshot_are_redone():
    made = a_start().progress(11, after=10, loading=0.4, training=10.0)
    made.stop("LOST: rank 0").begin("w0", "w1", source=5)
    made.progress(25, after=20, final=True, loading=0.4, training=20.0).end()
    told = account(made.lines)
    assert (6, 25) == (told.updates_redone, told.updates)
    assert told.spent[Spent.PRODUCTIVE_TRAINING] == pytest.approx(2 * (10 + 14))
    assert 6 == told.failures[0].updates_redone


def test_a_planned_stop_undoes_nothing():
    made = a_start()
    made.now += 9.0
    made.stop("RESIZED", 1.0, update=10, loading=0.4, training=9.8)
    made.come("w2").begin("w0", "w1", "w2", source=10)
    made.progress(20, final=True, loading=0.4, training=0.1).end()
    seconds = spent(made)
    assert Spent.WASTED_PROGRESS not in seconds and Spent.DETECTION not in seconds
    assert 2 * 9.8 + 3 * 0.1 == pytest.approx(seconds[Spent.PRODUCTIVE_TRAINING])
    assert not account(made.lines).failures


def test_slots_that_train_not_are_told_from_those_that_are_not_there():
    made = Made().come("w0").write("waiting", cause="2 workers, 1 ready, 0 starting")
    made.come("w1", after=10, ready_after=4).begin("w0", "w1")
    made.come("w2", after=5, ready_after=3).progress(30, after=7, final=True, training=15.0).end()
    seconds = spent(made)
    # of 29.5 s w1 was away for 10 and w2 for 19.5, while w0 waited for 10 for somebody
    assert 10 + 10 + 19.5 == seconds[Spent.INFRASTRUCTURE_RECOVERY]
    assert 7 == seconds[Spent.UNUSED]
    assert 2 * 4 + 3 + 2 * 0.5 == seconds[Spent.PROGRAM_STARTUP]


def test_starts_of_the_same_command_are_one_account():
    made = a_start().progress(50, after=10, training=10.0)
    made.write("checkpoint")  # killed here: nobody could write that down
    made.run, made.update, made.generation = "b", 0, 0
    made.write("slots", 60, came={"worker-0": "n", "worker-1": "n"})
    made.write("slots", 5, ready=["worker-0", "worker-1"])
    made.generation, made.size = 1, 2
    made.write("beginning", workers=["worker-0", "worker-1"], **{"from": None})
    made.write("started", 0.1, ranks=[])
    made.update = 41
    made.write("advanced", 0.4).progress(60, after=9, final=True, loading=0.4, training=9.0).end()
    told = account(made.lines)
    assert 2 * 60 == told.spent[Spent.DOWN]
    assert (2, 60, 10) == (len(told.story.starts), told.updates, told.updates_redone)
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots)


def test_a_run_that_goes_on_is_told_as_far_as_it_got():
    told = account(a_start().progress(10, after=9.5, loading=0.4, training=9.0).lines)
    assert not told.story.is_over and told.goodput == pytest.approx(9.5 / 15, abs=0.04)


def test_a_journal_of_an_older_version_has_training_and_stops():
    made = Made()
    made.write("waiting", cause="1 workers, 0 ready, 2 starting")
    made.generation, made.size = 1, 2
    ranks = [{"rank": 0, "node": "a", "pid": 1}, {"rank": 1, "node": "b", "pid": 2}]
    made.write("started", 6, ranks=ranks).write("advanced", 0.5, update=1)
    made.write("stopped", 10, update=20, cause="LOST: rank 1").write("started", 1, ranks=ranks)
    made.write("advanced", 0.5, update=21).end(after=10)
    for line in made.lines:
        del line["run"]  # which one folder had one of
    seconds = spent(made)
    assert 1 == len(account(made.lines).story.starts)
    assert 2 * 20 == seconds[Spent.PRODUCTIVE_TRAINING]
    assert 2 * 0.5 == seconds[Spent.CHECKPOINT_RESTORE]


@settings(max_examples=100, deadline=None)
@given(journals.lines())
def test_whatever_a_journal_says_the_seconds_add_up(lines):
    told = account(lines)
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots, abs=1e-6)
    assert min(told.spent.values()) >= 0
    assert 0 <= told.goodput <= 1 + 1e-9


def test_ten_thousand_lines_take_less_than_two_seconds():
    lines = journals.long_run()
    begin = time.process_time()
    told = account(lines)
    assert time.process_time() - begin < 2
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots)


def test_what_is_no_event_is_left_out():
    made = a_start().end()
    told = account([None, 7, {}, {"kind": "x"}, {"kind": "slots", "time": "?"}, *made.lines])
    assert told.updates == 1
    with pytest.raises(Empty):
        account([None, {"kind": 1}])


def test_percentiles_are_values_that_occurred():
    assert [2, 4, 4] == [percentile([1, 2, 3, 4], share) for share in (0.5, 0.9, 1.0)]


def test_ranks_that_others_waited_for_are_told_who_was_named_first():
    def there(rank, seconds, data=0.0):
        return {"rank": rank, "node": f"n{rank}", "seconds": seconds, "data": data}

    made = a_start()
    for slowest in ([there(0, 0.9), there(1, 0.5)], [there(0, 1.1, 0.5), there(2, 0.6)]):
        made.progress(10, training=5.0)
        made.lines[-1]["strides"] = {"median": 0.5, "slowest": slowest}
    made.write("slow", median=0.5, **there(2, 0.7))
    named, slow = account(made.end().lines).slowest
    assert (2, "n2", 1) == (named.rank, named.node, named.num_named)
    assert (0, 2, 0) == (slow.rank, slow.num_seen, slow.num_named), "rank 1 is as the median"
    assert (1.0, 0.25, 2.0) == pytest.approx((slow.seconds, slow.data, slow.ratio))
