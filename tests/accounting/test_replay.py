"""The measure that the goodput benchmark applies to every launcher, and what it lets happen."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from replay import tables
from replay.measure import Loss, Update, measure, rate_of, restarts, save_seconds, updates_of
from replay.schedule import of_kills, of_places, of_trace
from simulation.arrivals import Change

RATE = {0: 0.0, 1: 10.0, 2: 20.0}
"""An update of 20 samples takes two seconds on one slot, and one on two."""


def updates(*told):
    """From (time, number, group, world)."""
    return [Update(float(at), number, group, world, 20) for at, number, group, world in told]


def shares(measured):
    assert measured.trained + sum(measured.lost.values()) == pytest.approx(measured.possible)
    lost = {kind: value for kind, value in measured.lost.items() if value > 1e-6}
    return measured.goodput, {kind: value / measured.possible for kind, value in lost.items()}


def test_an_undisturbed_run_loses_nothing():
    run = updates(*((second, second, "a", 2) for second in range(11)))
    assert shares(measure(run, [(0, 2)], RATE, 0, 10)) == (1.0, {})
    assert shares(measure(run, [(0, 2)], RATE, 0, 10.9)) == (1.0, {})  # one is under way


def test_a_restart_that_goes_back_to_a_checkpoint_stands_still_and_does_updates_again():
    before = [(second, second, "a", 2) for second in range(5)]
    after = [(7 + number, 2 + number, "b", 2) for number in range(4)]  # update 3 is done after 8 s
    goodput, lost = shares(measure(updates(*before, *after), [(0, 2)], RATE, 0, 10))
    assert goodput == pytest.approx(0.5)  # updates 1 to 5
    assert lost == {Loss.STILL: pytest.approx(0.2), Loss.REDONE: pytest.approx(0.3)}


def test_slots_that_are_there_and_not_in_training_are_lost_and_those_that_are_not_there_are_not():
    alone = [(2.0 * number, number, "a", 1) for number in range(4)]
    both = [(7.0 + number, 4 + number, "b", 2) for number in range(4)]
    slots = [(-1.0, 1), (4.0, 2)]  # the second one needs two seconds to begin
    goodput, lost = shares(measure(updates(*alone, *both), slots, RATE, 0, 10))
    assert goodput == pytest.approx((3 + 4) * 20 / (4 * 10 + 6 * 20))
    assert lost == {Loss.UNUSED: pytest.approx(20 / 160)}


def test_a_training_that_does_not_go_on_loses_all_from_then_on():
    run = updates(*((second, second, "a", 2) for second in range(6)))
    goodput, lost = shares(measure(run, [(0, 2)], RATE, 0, 10))
    assert (goodput, lost) == (pytest.approx(0.5), {Loss.STILL: pytest.approx(0.5)})


def test_slower_updates_are_told_from_stops():
    run = updates(*((2 * number, number, "a", 2) for number in range(6)))
    goodput, lost = shares(measure(run, [(0, 2)], RATE, 0, 10))
    assert (goodput, lost) == (pytest.approx(0.5), {Loss.SLOWER: pytest.approx(0.5)})


def test_an_update_is_complete_with_its_first_rank_and_has_the_samples_of_all():
    def line(rank, update, at):
        return {"rank": rank, "update": update, "group": "g", "world": 2, "time": at, "ids": [1, 2]}

    begun = [line(0, 1, 0.0), line(1, 1, 0.1), line(0, 2, 2.0), line(1, 2, 2.0)]
    done = [line(1, 1, 1.5), line(0, 1, 1.4)]  # nobody completed update 2
    assert updates_of(begun, done) == [Update(1.4, 1, "g", 2, 4)]


def test_what_a_checkpoint_takes_is_told_from_the_time_between_updates():
    times, at = [], 0.0
    for number in range(1, 31):
        times.append((at, number, "a", 1))
        at += 2.5 if number % 10 == 0 else 2.0
    assert rate_of(updates(*times), 10) == pytest.approx(10.0)
    assert save_seconds(updates(*times), 10) == pytest.approx(0.5)


def test_a_restart_ends_with_the_first_update_of_ranks_that_began_after_the_fault():
    run = updates((0, 0, "a", 2), (1, 1, "a", 2), (2, 2, "b", 1), (5.5, 2, "c", 2))
    assert restarts(run, [1.5, 3.0, 6.0]) == [0.5, 2.5]  # the last one is not over


def test_tables_say_what_was_measured_and_what_was_not_run():
    run = {"seconds": 100.0, "faults": 10, "goodput": 0.5, "restarts_s": [4.0]}
    lines = [
        {"kind": "undisturbed", "size": 2, "samples_s": 10.0, "save_s": 0.5},
        {"kind": "mtbf", "contestant": "torchrun", "mtbf_s": 10.0, **run},
        {"kind": "mtbf", "contestant": "ours", "mtbf_s": 10.0, **run, "goodput": 0.9},
        {"kind": "mtbf", "contestant": "ours", "mtbf_s": 30.0, "failed": "no update"},
    ]
    assert tables.kills(lines[:3]).splitlines()[2:] == [
        "| fairseq-ray-train | 90.0% (10 in 100 s) |",
        "| stock fairseq under elastic torchrun | 50.0% (10 in 100 s) |",
        "| Young-Daly, with torchrun's costs | 47.9% |",
    ]
    assert "| did not begin |" in tables.kills(lines)
    assert "| not run |" in tables.kills(lines)


def test_an_instance_takes_the_first_free_place():
    trace = [
        *(Change(0, "add", name) for name in "abc"),
        *(Change(1, "remove", "b"), Change(2, "remove", "a")),
        *(Change(3, "add", "d"), Change(4, "add", "e"), Change(5, "remove", "e")),
    ]
    chosen = of_places(trace, places=[1])
    assert [(change.kind, change.node) for change in chosen] == [
        *(("add", "b"), ("remove", "b"), ("add", "e"), ("remove", "e"))
    ]


def test_a_part_of_the_trace_begins_with_what_is_there_and_is_as_fast_as_it_is_told():
    schedule = of_trace("p3", (2.0, 4.0), 24)
    assert (len(schedule.first), schedule.losses, schedule.length_s) == (4, 4, pytest.approx(300))
    there = set(schedule.first)
    for change in schedule.changes:
        assert 0 <= change.at <= 300
        assert (change.node in there) == (change.kind == "remove")
        there ^= {change.node}
        assert 2 <= len(there) <= 4


def test_kills_come_by_chance_in_turn_and_once_at_the_least():
    schedule = of_kills(10, 10_000, ("a", "b"))
    assert 900 < len(schedule.changes) < 1100
    assert [change.node for change in schedule.changes[:4]] == ["a", "b", "a", "b"]
    assert schedule == of_kills(10, 10_000, ("a", "b"))
    assert [change.at for change in of_kills(1e6, 60, ("a",)).changes] == [30]
