"""A worker gives each order its answer and loses no message, whatever its rank does meanwhile."""

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import puppets
import pytest
from driving import MASTER, LocalWorker, hold, role, start

from fairseq_ray_plugin.assignment import Holding
from fairseq_ray_plugin.protocol import (
    Advanced,
    Copy,
    Ended,
    FromRank,
    Held,
    Hold,
    InMemory,
    Missing,
    Publish,
    Running,
    Snapshot,
    Stacks,
    Unfit,
    Unsaved,
)
from fairseq_ray_plugin.worker import evidence, meeting
from fairseq_ray_plugin.worker import worker as worker_room
from fairseq_ray_plugin.worker.outbox import Outbox

pytestmark = pytest.mark.timeout(60)


# messages


def test_messages_are_said_again_until_they_are_known_to_have_arrived():
    async def conversation():
        outbox = Outbox()
        outbox.put("one")
        outbox.put("two")
        assert ["one", "two"] == await outbox.get(10)
        outbox.put("three")
        assert ["one", "two", "three"] == await outbox.get(10), "the answer was lost"
        outbox.forget(2)
        assert ["three"] == await outbox.get(10)
        outbox.forget(3)
        assert [] == await outbox.get(0)
        outbox.put("four")
        assert ["four"] == await outbox.get(10)

    asyncio.run(conversation())


def test_a_question_that_was_under_way_for_long_loses_no_message():
    async def conversation():
        outbox = Outbox()
        for message in ("one", "two", "three", "four"):
            outbox.put(message)
        outbox.forget(1)
        outbox.forget(0)  # it was asked before
        assert ["two", "three", "four"] == await outbox.get(10)
        outbox.forget(2)
        assert ["three", "four"] == await outbox.get(10)

    asyncio.run(conversation())


def test_who_waits_for_a_message_has_it_at_once():
    async def conversation():
        outbox = Outbox()
        waiting = asyncio.create_task(outbox.get(10))
        await asyncio.sleep(0)
        outbox.put("one")
        assert ["one"] == await waiting

    asyncio.run(conversation())


def test_another_loop_is_told_what_the_first_was_and_hears_on(driver, ranks):
    assert (True, 0, 0) == _adopted(driver, "is_ready", "generation", "newest")
    rank = start(driver, ranks)
    assert (1, 0, 1, False) == _adopted(driver, "generation", "rank", "world_size", "is_at_rest")
    (folder, *_) = driver.worker.memory.folders
    paths = [f"{folder}/update_{update}.pt" for update in (3, 4)]
    for path, update in zip(paths, (3, 4), strict=True):
        rank.say(Snapshot(update, path))
        driver.hear()
    Path(paths[1]).touch()
    copy = Copy(4, InMemory("node", paths[1]))
    assert ((copy,),) == _adopted(driver, "snapshots"), "the other is gone"
    rank.say(Advanced(5, 1.0))
    driver.hear()
    hold(driver, rank, generation=2, update=6)
    assert (True, 6, 2) == _adopted(driver, "is_at_rest", "update", "newest")
    (num_heard,) = _adopted(driver, "num_heard")
    assert num_heard == driver.num_heard - 1, "of the last it is not known"
    assert [FromRank(1, Held(6, 2))] == driver.ask(driver.worker.next_messages(num_heard, 0))


def _adopted(driver, *names):
    found = driver.ask(driver.worker.adopt())
    return tuple(getattr(found, name) for name in names)


def test_what_a_rank_says_is_not_opened(driver, ranks):
    rank = start(driver, ranks)
    for message in (("something", "new"), Advanced(1, 2.5), Unfit("said by a rank"), None):
        rank.say(message)
        assert FromRank(1, message) == driver.hear()


def test_the_last_words_of_a_rank_come_before_its_end(driver, ranks):
    rank = start(driver, ranks)
    words = [Advanced(update, 0.0) for update in range(20)]

    async def do_not_listen():
        rank.say(*words)
        rank.exit(3)
        assert driver.worker.server._connection.poll(puppets.WAIT_S)

    driver.ask(do_not_listen())
    assert [FromRank(1, word) for word in words] == [driver.hear() for _ in words]
    assert FromRank(1, Ended("exited with code 3")) == driver.hear()


# starting


def test_a_rank_gets_its_role_and_what_its_worker_knows(driver, ranks, tmp_path):
    assignment = start(driver, ranks, 4, restore=tmp_path / "checkpoint_7.pt").assignment
    assert (4, 0, 1) == (assignment.generation, assignment.rank, assignment.world_size)
    assert str(tmp_path / "checkpoint_7.pt") == assignment.restore
    assert driver.memory == [*map(Path, assignment.snapshot_folders)]


def test_the_rank_of_the_next_generation_takes_the_place_of_the_last_one(driver, ranks):
    first = start(driver, ranks)
    second = start(driver, ranks, 2)
    first.wait()
    assert driver.hears_nothing()
    hold(driver, second, 2)


def test_a_rank_that_is_replaced_as_it_begins_is_not_taken_for_its_successor(driver, ranks):
    async def start_two():
        await driver.worker.start(role(1), MASTER)
        first = ranks.next()
        first.exit(3)
        first.wait()
        await driver.worker.start(role(2), MASTER)  # nothing has been heard of the first one

    driver.ask(start_two())
    second = ranks.next()
    assert FromRank(2, Running(second.pid)) == driver.hear()
    assert driver.hears_nothing()
    hold(driver, second, 2)


def test_the_end_of_a_rank_that_is_heard_late_is_not_taken_for_its_successors(driver, ranks):
    first = start(driver, ranks)

    async def start_another():
        first.exit(3)
        assert driver.worker.server._connection.poll(puppets.WAIT_S)
        await driver.worker.start(role(2), MASTER)

    driver.ask(start_another())
    second = ranks.next()
    assert FromRank(2, Running(second.pid)) == driver.hear()
    hold(driver, second, 2)


def test_a_rank_whose_snapshot_is_gone_does_not_begin_and_the_older_one_stays(driver, ranks):
    older = start(driver, ranks)
    gone = driver.memory[0] / "snapshot_1.pt"
    driver.start(2, restore=gone, from_snapshot=True)
    assert FromRank(2, Missing(str(gone))) == driver.hear()
    hold(driver, older, 2)


def test_a_snapshot_in_a_folder_that_is_not_the_runs_own_is_not_opened(driver, tmp_path):
    planted = tmp_path / "shm" / "snapshot_1.pt"
    planted.write_text("a pickle is a program")
    linked = driver.memory[0] / "snapshot_1.pt"
    linked.symlink_to(planted)
    for path in (planted, linked):
        driver.start(2, restore=path, from_snapshot=True)
        assert FromRank(2, Missing(str(path))) == driver.hear()
        driver.tell(Publish(Copy(7, InMemory("node", str(path)))))
        assert isinstance(driver.hear().says, Unsaved)


def test_only_rank_0_needs_the_snapshot(driver, ranks):
    start(driver, ranks, rank=1, restore=driver.memory[0] / "snapshot_1.pt", from_snapshot=True)


# holding


def test_a_rank_that_never_began_is_held_at_once_and_does_not_begin_later(driver, ranks):
    driver.tell(Hold(1, at_once=True))
    assert FromRank(0, Held(None, asked=1)) == driver.hear()
    driver.start(1)
    start(driver, ranks, 2)


def test_where_the_newer_rank_never_began_the_older_one_answers(driver, ranks):
    older = start(driver, ranks)
    hold(driver, older, 2)
    driver.start(2)  # it has been overtaken
    assert driver.hears_nothing()
    hold(driver, older, 3)


def test_an_order_that_was_overtaken_by_the_next_generation_does_not_hold_that(driver, ranks):
    start(driver, ranks)
    newer = start(driver, ranks, 2)
    driver.tell(Hold(1, at_once=True), Hold(2, at_once=False))
    assert Hold(2, at_once=False) == newer.hear()


def test_a_planned_stop_leaves_a_rank_its_time(driver, ranks):
    rank = start(driver, ranks)
    driver.tell(Hold(1, at_once=False))
    driver.let_pass(60)
    assert Hold(1, at_once=False) == rank.hear()
    rank.say(Holding(), Held(8, 1))
    assert FromRank(1, Held(8, 1)) == driver.hear()


def test_a_rank_whose_end_is_told_late_is_not_said_to_hold_nothing_before_that(driver, ranks):
    """Its end of the pipe closes a moment before its server knows how it ended."""
    rank = start(driver, ranks)
    os.kill(driver.worker.server.process.pid, signal.SIGSTOP)
    rank.kill()
    while driver.worker.link is not None:
        driver.let_pass(0)
    answer = driver.begin(driver.worker.tell(Hold(1, at_once=True)))
    os.kill(driver.worker.server.process.pid, signal.SIGCONT)
    answer.result(puppets.WAIT_S)
    assert isinstance(driver.hear().says, Ended)
    assert FromRank(1, Held(None, 1)) == driver.hear()


def test_a_rank_that_does_not_answer_is_killed(driver, ranks):
    rank = start(driver, ranks)
    rank.kill(signal.SIGSTOP)
    driver.tell(Hold(1, at_once=True))
    driver.let_pass(worker_room.ANSWER_S - 1)
    assert driver.hears_nothing()
    driver.let_pass(1)
    assert FromRank(1, Ended("did not answer, and was killed")) == driver.hear()
    rank.wait()
    driver.tell(Hold(1, at_once=True))
    assert FromRank(1, Held(None, 1)) == driver.hear()


def test_a_rank_that_says_it_lives_has_time_to_come_to_rest(driver, ranks):
    rank = start(driver, ranks)
    driver.tell(Hold(1, at_once=True))
    rank.hear()
    rank.say(Holding())
    assert rank.is_alive()  # it has said so
    driver.let_pass(20)
    assert rank.is_alive()
    rank.say(Held(7, 1))
    assert FromRank(1, Held(7, 1)) == driver.hear()


def test_the_rank_that_follows_an_unanswering_one_is_not_killed_for_it(driver, ranks):
    start(driver, ranks)
    driver.tell(Hold(1, at_once=True))
    rank = start(driver, ranks, 2)
    driver.let_pass(worker_room.ANSWER_S)
    hold(driver, rank, 2)


def test_what_all_threads_do_is_said_before_a_rank_is_held(driver, ranks):
    rank = start(driver, ranks)
    order = Hold(1, at_once=True, with_stacks=True)
    driver.tell(order)
    message = driver.hear()
    assert 1 == message.generation and isinstance(message.says, Stacks)
    assert "obey" in message.says.text
    assert order == rank.hear()


def test_a_rank_that_began_while_stacks_were_taken_is_not_held(driver, ranks, monkeypatch):
    start(driver, ranks)
    taken = asyncio.Event()

    async def stacks(pid):
        await taken.wait()
        return "stacks"

    monkeypatch.setattr(evidence, "stacks", stacks)
    told = driver.begin(driver.worker.tell(Hold(1, at_once=True, with_stacks=True)))
    newer = start(driver, ranks, 2)
    driver.loop.call_soon_threadsafe(taken.set)
    told.result(puppets.WAIT_S)
    assert driver.hears_nothing()
    driver.tell(Hold(2, at_once=False))
    assert Hold(2, at_once=False) == newer.hear()


# meeting


def test_ranks_of_one_node_meet_where_no_other_node_can_reach_them(driver):
    driver.worker.get_node_ip = lambda: "127.0.0.2"
    for on_one_node, address in ((True, "127.0.0.1"), (False, "127.0.0.2")):
        host, port = driver.ask(driver.worker.address(on_one_node))
        assert address == host and (address, port) == driver.worker.door.listener.getsockname()


def test_a_node_that_does_not_have_its_own_address_is_reached_all_the_same(driver):
    driver.worker.get_node_ip = lambda: "203.0.113.77"  # nobody's
    host, port = driver.ask(driver.worker.address(on_one_node=False))
    assert "203.0.113.77" == host and ("0.0.0.0", port) == driver.worker.door.listener.getsockname()


def test_ranks_are_reached_on_the_interface_of_the_address():
    assert "lo" == meeting.interface("127.0.0.1", "203.0.113.77")
    assert "lo" == meeting.interface("203.0.113.1", "127.0.0.1")
    assert meeting.interface("203.0.113.1", "203.0.113.77") is None


# what it cannot do without


def test_a_node_without_a_folder_that_is_this_users_alone_is_unfit(driver, tmp_path):
    for name in ("shm", "disk"):
        (tmp_path / name).chmod(0o777)
    other = LocalWorker(driver.worker.job)
    driver.ask(other.prepare(driver.worker.job))
    (unfit,) = driver.ask(other.next_messages(0, 0))
    assert unfit.reason.startswith("no folder for snapshots: others may rename what is in")
    driver.ask(other.stop())


def test_a_node_that_lacks_user_code_which_cannot_be_sent_says_so(driver):
    job = dataclasses.replace(
        driver.worker.job, user_dir="/nowhere/my_tasks", user_dir_not_sent="it has 300 MiB"
    )
    other = LocalWorker(job)
    driver.ask(other.prepare(job))
    (unfit,) = driver.ask(other.next_messages(0, 0))
    reason = "it is not on this node and was not sent: it has 300 MiB"
    assert Unfit(f"--user-dir /nowhere/my_tasks: {reason}") == unfit
    driver.ask(other.stop())
