"""A worker that nobody asks anything saves what its rank holds, and then ends."""

import os
import threading

import pytest
from driving import start

from fairseq_ray_plugin.assignment import Holding, Write, Written
from fairseq_ray_plugin.checkpoints import manifests, sums
from fairseq_ray_plugin.checkpoints.contents import Facts
from fairseq_ray_plugin.protocol import FromRank, Held, Hold, Saved
from fairseq_ray_plugin.worker import forsaken

pytestmark = pytest.mark.timeout(60)


def write(path, updates):
    """A checkpoint is there."""
    path.write_text(f"the state after update {updates}")
    manifests.write(str(path), sums.whole_file(str(path)), Facts(updates=updates, epoch=1))


def hold(driver, rank):
    """The rank is at rest, and what follows is under way."""
    saving = driver.begin(forsaken.save(driver.worker))
    assert Hold(1, at_once=True) == rank.hear()
    rank.say(Holding(), Held(7, 1))
    assert FromRank(1, Held(7, 1)) == driver.hear(), "a loop that comes is told"
    return saving


def is_saved(driver, ranks, rank):
    order = rank.hear()
    assert Write(tuple(map(str, driver.memory)), order.name) == order
    held = driver.memory[0] / order.name
    held.write_text("state")
    rank.say(Saved(7, str(held)))
    writer, target = ranks.next(), str(driver.last_checkpoint)
    assert (str(held), target) == (writer.task.snapshot, writer.task.target)
    writer.say(writer.pid, Written(target))
    assert FromRank(1, Saved(7, target)) == driver.hear()
    return not held.exists()


def test_what_its_rank_holds_becomes_the_last_checkpoint(driver, ranks):
    rank = start(driver, ranks)
    hold(driver, rank).result(10)
    assert is_saved(driver, ranks, rank)


@pytest.mark.parametrize(("there", "is_needed"), [(7, False), (8, False), (6, True), (None, True)])
def test_other_ranks_save_where_the_first_has_not(driver, ranks, there, is_needed, monkeypatch):
    monkeypatch.setattr(forsaken, "TURN_S", 0.2)
    write(driver.last_checkpoint, 5)
    rank = start(driver, ranks, rank=1)
    saving = hold(driver, rank)
    if there:
        write(driver.last_checkpoint, there)
    saving.result(10)
    if is_needed:
        assert is_saved(driver, ranks, rank)
    else:
        driver.tell(Hold(2, at_once=True))
        assert Hold(2, at_once=True) == rank.hear(), "it was told to write"


def test_without_a_rank_there_is_nothing_to_save(driver):
    driver.ask(forsaken.save(driver.worker))
    assert driver.hears_nothing()


def test_it_saves_before_it_ends_and_neither_while_it_is_asked(driver, monkeypatch):
    passed, happened = threading.Semaphore(0), []

    async def save(worker):
        happened.append("saved")

    async def stop():
        happened.append("stopped")

    ended = threading.Event()

    def end(code):
        happened.append(code)
        ended.set()
        threading.Event().wait()

    async def ask():
        there.is_asked()

    monkeypatch.setattr(forsaken, "save", save)
    monkeypatch.setattr(driver.worker, "stop", stop)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(forsaken.time, "sleep", lambda seconds: passed.acquire())
    there = forsaken.Forsaken(driver.worker, 2.5, 5)
    for _ in range(4):
        driver.ask(ask())
        passed.release()
        passed.release()
        while there._unasked_s < 2:
            pass
    assert [] == happened
    for _ in range(3):
        passed.release()
    assert ended.wait(10)
    assert ["saved", "stopped", 0] == happened
    monkeypatch.undo()
