"""The rank of a generation to come, beside the one that trains."""

import dataclasses

import pytest
from driving import MASTER, hold, role, start

from fairseq_ray_plugin.assignment import Go
from fairseq_ray_plugin.protocol import (
    Advanced,
    Ended,
    FromRank,
    Held,
    Hold,
    Missing,
    Running,
    Save,
    Saved,
    StandDown,
    StandingBy,
)

pytestmark = pytest.mark.timeout(60)


def stand_by(driver, ranks, generation, **where):
    """A rank is made for a generation that has not begun."""
    ahead = dataclasses.replace(role(generation, **where), stands_by=True)
    driver.ask(driver.worker.stand_by(ahead, MASTER))
    rank = ranks.next()
    assert (generation, True) == (rank.assignment.generation, rank.assignment.stands_by)
    return rank


def test_both_live_and_speak_until_the_next_generation_begins_and_then_it_goes_on(driver, ranks):
    old = start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    new.say(StandingBy())
    assert FromRank(2, StandingBy()) == driver.hear()
    old.say(Advanced(7, 0.0))
    assert FromRank(1, Advanced(7, 0.0)) == driver.hear()
    hold(driver, old)
    driver.tell(Save(as_checkpoint=False))
    write = old.hear()
    old.say(Saved(7, f"{write.folders[0]}/{write.name}"))
    path = driver.hear().says.path
    driver.start(2, restore=path)
    old.wait()
    assert FromRank(2, Running(new.pid)) == driver.hear()
    assert Go(path, None) == new.hear()
    new.say(Advanced(8, 0.0))
    assert FromRank(2, Advanced(8, 0.0)) == driver.hear()
    hold(driver, new, generation=2, update=8)


def test_it_goes_on_also_where_the_rank_before_it_is_no_more(driver, ranks):
    old = start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    old.kill()
    assert isinstance(driver.hear().says, Ended)
    assert new.is_alive()
    driver.start(2, restore="/checkpoint_last.pt")
    assert FromRank(2, Running(new.pid)) == driver.hear()
    assert Go("/checkpoint_last.pt", None) == new.hear()


def test_its_end_is_said_as_its_own_and_no_generation_begins_with_it(driver, ranks):
    old = start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    new.kill()
    new.wait()
    assert FromRank(2, Ended("was killed by SIGKILL")) == driver.hear()
    driver.start(2)
    assert old.is_alive(), "what it holds is wanted"
    hold(driver, old, generation=2)
    start(driver, ranks, 3)


def test_its_end_after_it_went_on_is_that_of_any_rank(driver, ranks):
    start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    driver.start(2)
    assert FromRank(2, Running(new.pid)) == driver.hear()
    new.kill()
    assert FromRank(2, Ended("was killed by SIGKILL")) == driver.hear()
    driver.tell(Hold(2, at_once=True))
    assert FromRank(2, Held(None, 2)) == driver.hear()


@pytest.mark.parametrize("how", ["told", "another", "started", "void"])
def test_it_ends_where_it_is_not_wanted_and_nothing_is_said_of_that(how, driver, ranks):
    old = start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    match how:
        case "told":
            driver.tell(StandDown(1))
            assert new.is_alive(), "that was another"
            driver.tell(StandDown(2))
        case "another":
            stand_by(driver, ranks, 3)
        case "started":
            start(driver, ranks, 3)
        case "void":
            hold(driver, old, generation=2)
    new.wait()
    assert driver.hears_nothing()


def test_who_has_met_others_elsewhere_is_not_taken_for_one_of_that_number(driver, ranks):
    start(driver, ranks)
    new = stand_by(driver, ranks, 2)
    driver.ask(driver.worker.start(role(2), ("127.0.0.1", 7)))
    new.wait()
    rank = ranks.next()
    assert FromRank(2, Running(rank.pid)) == driver.hear()
    assert not rank.assignment.stands_by


def test_it_is_not_made_for_a_generation_that_is_over(driver, ranks):
    old = start(driver, ranks, 2)
    for generation in (1, 2):
        ahead = dataclasses.replace(role(generation), stands_by=True)
        driver.ask(driver.worker.stand_by(ahead, MASTER))
    hold(driver, old, generation=3)
    driver.ask(driver.worker.stand_by(dataclasses.replace(role(3), stands_by=True), MASTER))
    stand_by(driver, ranks, 4)


def test_where_the_snapshot_is_gone_the_rank_before_still_has_the_state(driver, ranks):
    old = start(driver, ranks)
    stand_by(driver, ranks, 2)
    path = f"{driver.memory[0]}/gone.raw"
    driver.start(2, restore=path, from_snapshot=True)
    assert FromRank(2, Missing(path)) == driver.hear()
    hold(driver, old, generation=2)


def test_a_loop_that_takes_over_knows_of_it_and_it_ends_with_its_worker(driver, ranks):
    start(driver, ranks)
    new = stand_by(driver, ranks, 5)
    assert 5 == driver.ask(driver.worker.adopt()).newest
    driver.close()
    new.wait()
