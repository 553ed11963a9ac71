"""Who follows a run hears all of it, in order and once, also who comes late."""

import threading

from fairseq_ray_plugin.report.sayings import KEPT, LAST, Place, Sayings

BEGINNING = Place("", 0)


def test_each_hears_everything_once():
    sayings = Sayings()
    sayings.put_nowait("one")
    sayings.put_nowait("two")
    told = sayings.tell(BEGINNING, 0)
    assert (["one", "two"], None) == (told.sayings, told.exit_code)
    assert [] == sayings.tell(told.place, 0).sayings
    sayings.put_nowait("three")
    assert ["three"] == sayings.tell(told.place, 10).sayings
    assert ["one", "two", "three"] == sayings.tell(BEGINNING, 10).sayings


def test_who_waits_hears_it_at_once():
    sayings = Sayings()
    threading.Timer(0.01, sayings.put_nowait, ("one",)).start()
    assert ["one"] == sayings.tell(BEGINNING, 60).sayings
    place = sayings.tell(BEGINNING, 0).place
    threading.Timer(0.01, sayings.end, (3,)).start()
    assert 3 == sayings.tell(place, 60).exit_code


def test_who_comes_late_hears_the_last_of_it_and_how_it_ended():
    sayings = Sayings()
    for number in range(KEPT + 50):
        sayings.put_nowait(number)
    sayings.end(1)
    told = sayings.tell(None, 60)
    assert list(range(KEPT + 50 - LAST, KEPT + 50)) == told.sayings and 1 == told.exit_code
    assert KEPT == len(sayings.tell(BEGINNING, 60).sayings), "no more are kept"


def test_after_a_restart_it_begins_anew():
    before, after = Sayings(), Sayings()
    for number in range(9):
        before.put_nowait(number)
    place = before.tell(BEGINNING, 0).place
    after.put_nowait("taken over")
    assert ["taken over"] == after.tell(place, 60).sayings


def test_how_the_run_is_comes_with_the_rest_and_wakes_nobody():
    sayings = Sayings()
    sayings.status = "2 workers"
    told = sayings.tell(BEGINNING, 0)
    assert ([], "2 workers") == (told.sayings, told.status)
