"""Checkpoints that are due are written behind training, in order, and nothing is lost of them."""

import os

import pytest
from driving import Driver, hold, start

from fairseq_ray_plugin.assignment import Backlog, Due, Write, WriteCheckpoint, Written
from fairseq_ray_plugin.protocol import (
    Checkpointed,
    Copy,
    Delayed,
    Ended,
    FromRank,
    InMemory,
    Publish,
    Ready,
    Save,
    Saved,
)
from fairseq_ray_plugin.worker.writing import MOST_KILLED, RETRY_S, STALL_S

pytestmark = pytest.mark.timeout(60)


def due(driver, rank, number, update, generation=1):
    """A rank has put a state by that is to be a checkpoint."""
    path = driver.memory[0] / f"update_{update}.raw.due"
    path.write_text("state")
    rank.say(Due(number, generation, update, str(path)))
    return path


def written(writer, name):
    writer.say(writer.pid, Written(name))


def test_one_is_written_after_the_other_and_the_rank_knows_how_many_wait(driver, ranks):
    rank = start(driver, ranks)
    first = due(driver, rank, 1, 10)
    writer = ranks.next()
    assert WriteCheckpoint(str(first), None) == writer.task
    assert Backlog(1, 1, False) == rank.hear()
    second = due(driver, rank, 2, 20)
    assert Backlog(2, 2, False) == rank.hear()
    written(writer, "checkpoint_1_10.pt")
    assert FromRank(1, Checkpointed(10, "checkpoint_1_10.pt")) == driver.hear()
    assert Backlog(2, 1, False) == rank.hear()
    assert not first.exists() and second.exists()
    written(ranks.next(), "checkpoint_1_20.pt")
    assert FromRank(1, Checkpointed(20, "checkpoint_1_20.pt")) == driver.hear()
    assert Backlog(2, 0, False) == rank.hear() and not second.exists()


def test_where_fairseq_wants_none_nothing_is_said(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    written(ranks.next(), None)
    assert [Backlog(1, 1, False), Backlog(1, 0, False)] == [rank.hear(), rank.hear()]
    assert driver.hears_nothing()


def test_a_rank_that_dies_leaves_what_is_due_to_be_written(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    writer = ranks.next()
    rank.kill()
    assert isinstance(driver.hear().says, Ended)
    successor = start(driver, ranks, 2)
    assert Backlog(0, 1, False) == successor.hear()
    written(writer, "checkpoint_1_10.pt")
    assert FromRank(1, Checkpointed(10, "checkpoint_1_10.pt")) == driver.hear()
    assert Backlog(0, 0, False) == successor.hear()


def test_what_there_is_no_room_for_is_kept_said_and_tried_again(driver, ranks):
    rank = start(driver, ranks)
    path = due(driver, rank, 1, 10)
    ranks.next().say("no room")
    assert FromRank(1, Delayed(10, "no room")) == driver.hear()
    assert [Backlog(1, 1, False), Backlog(1, 1, True)] == [rank.hear(), rank.hear()]
    driver.let_pass(RETRY_S)
    ranks.next().say("no room")
    while driver.worker.writing._retry is None:
        assert driver.hears_nothing(), "it was said before"
    driver.let_pass(RETRY_S)
    ranks.next().say("read-only")
    assert FromRank(1, Delayed(10, "read-only")) == driver.hear()
    driver.let_pass(RETRY_S)
    assert path.exists()
    written(ranks.next(), "checkpoint_1_10.pt")
    assert FromRank(1, Checkpointed(10, "checkpoint_1_10.pt")) == driver.hear()
    assert Backlog(1, 0, False) == rank.hear()


def test_a_writer_that_is_killed_is_followed_by_another(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    for _ in range(MOST_KILLED):
        ranks.next().kill()
    assert driver.hears_nothing()
    ranks.next().kill()
    assert "killed" in driver.hear().says.reason
    driver.let_pass(RETRY_S)
    written(ranks.next(), "checkpoint_1_10.pt")
    assert isinstance(driver.hear().says, Checkpointed)


def test_where_nothing_can_be_written_the_newest_is_kept_and_the_first(driver, ranks):
    rank = start(driver, ranks)
    paths = [due(driver, rank, 1, 10)]
    ranks.next().say("no room")
    driver.hear()
    for number, update in ((2, 20), (3, 30)):
        paths.append(due(driver, rank, number, update))
        said = driver.hear().says
    assert Delayed(20, "no room", given_up=True) == said
    assert [True, False, True] == [path.exists() for path in paths]


def test_a_disk_that_stands_still_stops_nobody(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    writer = ranks.next()
    writer.say(writer.pid)
    assert Backlog(1, 1, False) == rank.hear()
    for _ in range(30):
        driver.let_pass(STALL_S / 10)
    assert "has taken nothing" in driver.hear().says.reason
    assert Backlog(1, 1, True) == rank.hear()
    writer.say(Written("checkpoint_1_10.pt"))
    assert isinstance(driver.hear().says, Checkpointed), "it goes on after all"


def test_the_last_checkpoint_comes_after_the_one_that_is_being_written(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    writer = ranks.next()
    assert Backlog(1, 1, False) == rank.hear()
    hold(driver, rank)
    saving = driver.begin(driver.worker.tell(Save(as_checkpoint=True)))
    assert not saving.done()
    written(writer, "checkpoint_1_10.pt")
    assert [Backlog(1, 0, False)] == [rank.hear()]
    assert isinstance(rank.hear(), Write)


def test_a_snapshot_is_published_though_nothing_else_can_be_written(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    ranks.next().say("no room")
    assert isinstance(driver.hear().says, Delayed)
    path = driver.memory[0] / "update_9.raw"
    path.write_text("state")
    driver.tell(Publish(Copy(9, InMemory("node", str(path)))))
    writer = ranks.next()
    assert str(driver.last_checkpoint) == writer.task.target
    written(writer, writer.task.target)
    assert FromRank(1, Saved(9, writer.task.target)) == driver.hear()


def test_what_a_dead_worker_had_to_write_is_written_by_the_next_on_its_node(
    driver, ranks, tmp_path
):
    rank = start(driver, ranks)
    rank.kill()
    assert isinstance(driver.hear().says, Ended)
    living = driver.memory[0] / f"update_20_{os.getpid()}_1.raw.due"
    left = driver.memory[0] / f"update_10_{rank.pid}_3.raw.due"
    for path in (living, left):
        path.write_text("state")
    successor = Driver(ranks.ranks, tmp_path / "save_dir")
    try:
        assert Ready() == successor.hear()
        writer = ranks.next()
        assert not left.exists() and living.exists()
        written(writer, "checkpoint_1_10.pt")
        assert FromRank(0, Checkpointed(10, "checkpoint_1_10.pt")) == successor.hear()
        assert not os.path.exists(writer.task.snapshot)
    finally:
        successor.close()


def test_a_worker_that_stops_ends_who_writes(driver, ranks):
    rank = start(driver, ranks)
    due(driver, rank, 1, 10)
    writer = ranks.next()
    driver.close()
    writer.wait()
    assert not os.path.exists(f"/proc/{writer.pid}/fd/0")
