"""A worker gives each order its answer and loses no message, whatever its rank does meanwhile."""

import asyncio
import os
import resource
import selectors
import shutil
import signal
import threading
from collections import deque
from pathlib import Path

import psutil
import puppets
import pytest

from fairseq_ray_plugin.assignment import Holding, Job, Role, Write
from fairseq_ray_plugin.checkpoints import memory
from fairseq_ray_plugin.protocol import (
    Advanced,
    Copy,
    Drop,
    Ended,
    FromRank,
    Held,
    Hold,
    InMemory,
    Missing,
    Publish,
    Ready,
    Running,
    Save,
    Saved,
    Stacks,
    Unfit,
    Unsaved,
)
from fairseq_ray_plugin.worker import evidence
from fairseq_ray_plugin.worker import worker as worker_room
from fairseq_ray_plugin.worker.worker import Outbox, Worker

pytestmark = pytest.mark.timeout(15)


MASTER = ("127.0.0.1", 0)


def role(generation, rank=0, restore=None):
    return Role(
        generation=generation,
        rank=rank,
        world_size=1,
        restore=restore and str(restore),
        keeps_snapshots=True,
    )


class LocalWorker(Worker):
    server_program = (puppets.PROGRAM,)

    def get_node_ip(self):
        return "127.0.0.1"

    def get_node_id(self):
        return "node"


class LastFirst(selectors.DefaultSelector):
    """Of what can be read, what came last is read first."""

    def select(self, timeout=None):
        return super().select(timeout)[::-1]


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead_s = 0.0

    def time(self):
        return super().time() + self.ahead_s


class Driver:
    """Asks a worker, whose event loop has a thread of its own, as the driver does."""

    def __init__(self, cfg, save_dir):
        self.loop = Loop(LastFirst())
        self.errors = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.last_checkpoint = save_dir / "checkpoint_last.pt"
        self.worker = LocalWorker(
            Job(
                run_id="run",
                cfg=cfg,
                groups=None,
                restart_epoch=False,
                snapshot_updates=None,
                threads=1,
                working_dir=os.getcwd(),
                python_path=(),
                user_dir=None,
                user_dir_zip=None,
                last_checkpoint=str(self.last_checkpoint),
                environment={},
            )
        )
        self.num_heard, self.unread = 0, deque()
        self.ask(self.worker.prepare())

    def ask(self, question):
        return self.begin(question).result(puppets.WAIT_S)

    def begin(self, question):
        return asyncio.run_coroutine_threadsafe(question, self.loop)

    def tell(self, *orders):
        for order in orders:
            self.ask(self.worker.tell(order))

    def start(self, generation, **where):
        self.ask(self.worker.start(role(generation, **where), MASTER))

    def hear(self):
        """The next message."""
        if not self.unread:
            self.unread += self.ask(self.worker.next_messages(self.num_heard, puppets.WAIT_S))
            assert self.unread, "nothing is said"
            self.num_heard += len(self.unread)
        return self.unread.popleft()

    def hears_nothing(self):
        return not self.unread and not self.ask(self.worker.next_messages(self.num_heard, 0))

    def let_pass(self, seconds):
        """So much later, all that was to happen until then has happened."""

        async def put_forward():
            self.loop.ahead_s += seconds
            await asyncio.sleep(0.001)  # what was due earlier comes first

        self.ask(put_forward())

    @property
    def memory(self):
        """Where the node keeps snapshots."""
        return [Path(folder) for folder in self.worker.memory.folders]

    def close(self):
        if self.thread.is_alive():
            self.ask(self.worker.stop())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()
        assert [] == self.errors


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    for name in ("shm", "disk", "save_dir"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(memory, "roots", lambda: [str(tmp_path / "shm"), str(tmp_path / "disk")])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def ranks():
    ranks = puppets.Puppets()
    yield ranks
    ranks.close()


@pytest.fixture
def importing(ranks, tmp_path):
    """A driver whose worker is at its imports."""
    driver = Driver(ranks.imports, tmp_path / "save_dir")
    yield driver
    driver.close()


@pytest.fixture
def driver(ranks, tmp_path):
    driver = Driver(ranks.ranks, tmp_path / "save_dir")
    assert Ready() == driver.hear()
    yield driver
    driver.close()


def start(driver, ranks, generation=1, **where):
    """A rank has been started."""
    driver.start(generation, **where)
    rank = ranks.next()
    assert generation == rank.assignment.generation
    assert FromRank(generation, Running(rank.pid)) == driver.hear()
    return rank


def hold(driver, rank, generation=1, update=7):
    """The rank is at rest, in a generation that it is of or that never began."""
    driver.tell(Hold(generation, at_once=True))
    assert Hold(generation, at_once=True) == rank.hear()
    rank.say(Holding(), Held(update, generation))
    assert FromRank(rank.assignment.generation, Held(update, generation)) == driver.hear()


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
        assert driver.worker.server.poll(puppets.WAIT_S)

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
        assert driver.worker.server.poll(puppets.WAIT_S)
        await driver.worker.start(role(2), MASTER)

    driver.ask(start_another())
    second = ranks.next()
    assert FromRank(2, Running(second.pid)) == driver.hear()
    hold(driver, second, 2)


def test_a_rank_whose_snapshot_is_gone_does_not_begin_and_the_older_one_stays(driver, ranks):
    older = start(driver, ranks)
    gone = driver.memory[0] / "snapshot_1.pt"
    driver.start(2, restore=gone)
    assert FromRank(2, Missing(str(gone))) == driver.hear()
    hold(driver, older, 2)


def test_only_rank_0_needs_the_snapshot(driver, ranks):
    start(driver, ranks, rank=1, restore=driver.memory[0] / "snapshot_1.pt")


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


# saving


def test_what_is_held_goes_to_the_nodes_memory_or_becomes_the_last_checkpoint(driver, ranks):
    rank = start(driver, ranks)
    hold(driver, rank)
    driver.tell(Save(as_checkpoint=False))
    folders = tuple(map(str, driver.memory))
    assert Write(folders, f"held_1_{rank.pid}.pt") == rank.hear()
    driver.tell(Save(as_checkpoint=True))
    save_dir = str(driver.last_checkpoint.parent)
    assert Write((save_dir,), "checkpoint_last.pt") == rank.hear()
    rank.say(Saved(7, str(driver.last_checkpoint)))
    assert FromRank(1, Saved(7, str(driver.last_checkpoint))) == driver.hear()


def test_without_a_rank_nothing_is_saved(driver, ranks):
    driver.tell(Save(as_checkpoint=True))
    assert FromRank(0, Unsaved("the training process that held it is no more")) == driver.hear()
    start(driver, ranks).exit(0)
    assert FromRank(1, Ended("exited with code 0")) == driver.hear()
    driver.tell(Save(as_checkpoint=True))
    assert FromRank(1, Unsaved("the training process that held it is no more")) == driver.hear()


def snapshot_in_memory(driver, content=b"x" * 3_000_000):
    path = driver.memory[0] / "update_7.pt"
    path.write_bytes(content)
    return Copy(7, InMemory("node", str(path)))


def test_a_snapshot_becomes_the_last_checkpoint(driver):
    driver.last_checkpoint.write_text("an old one")
    driver.tell(Publish(snapshot_in_memory(driver, b"the state")))
    assert FromRank(0, Saved(7, str(driver.last_checkpoint))) == driver.hear()
    assert b"the state" == driver.last_checkpoint.read_bytes()
    assert [driver.last_checkpoint] == [*driver.last_checkpoint.parent.iterdir()]


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_old_one(driver):
    driver.last_checkpoint.write_text("an old one")
    snapshot = snapshot_in_memory(driver)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        driver.tell(Publish(snapshot))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    unsaved = driver.hear().says
    assert isinstance(unsaved, Unsaved) and str(driver.last_checkpoint) in unsaved.reason
    assert "an old one" == driver.last_checkpoint.read_text()
    assert [driver.last_checkpoint] == [*driver.last_checkpoint.parent.iterdir()]


def test_a_checkpoint_whose_folder_cannot_be_made_is_not_saved(driver):
    driver.last_checkpoint.parent.rmdir()
    driver.last_checkpoint.parent.write_text("no folder")
    driver.tell(Publish(snapshot_in_memory(driver)))
    assert isinstance(driver.hear().says, Unsaved)


def test_what_is_not_wanted_any_more_takes_no_room(driver):
    first, disk = driver.memory
    old = snapshot_in_memory(driver)
    (disk / "update_9.pt").write_text("state")
    driver.tell(Drop(frozenset([old.place.path])))
    assert [["held"], ["held", "update_9.pt"]] == [sorted(os.listdir(f)) for f in (first, disk)]


def test_what_a_killed_rank_left_of_a_snapshot_goes_with_it(driver, ranks):
    rank = start(driver, ranks)
    partial = driver.memory[0] / f"update_7.pt.{rank.pid}.tmp"
    partial.write_text("half a state")
    os.kill(rank.pid, signal.SIGKILL)
    assert isinstance(driver.hear().says, Ended)
    assert not partial.exists()


def test_a_rank_lives_on_where_old_snapshots_cannot_be_removed(driver, ranks):
    rank = start(driver, ranks)
    memory, disk = driver.memory
    shutil.rmtree(memory)  # somebody has cleared up
    (disk / "update_8.pt").mkdir()
    driver.tell(Drop(frozenset([str(memory / "update_7.pt"), str(disk / "update_8.pt")])))
    hold(driver, rank)


# ends


def test_a_worker_whose_server_dies_is_unfit(driver, ranks):
    rank = start(driver, ranks)
    driver.worker.process.kill()
    rank.wait()
    assert Unfit("its preloaded server died") == driver.hear()
    assert driver.hears_nothing()


def test_a_worker_that_cannot_import_is_unfit(importing, ranks):
    ranks.next().fail()
    assert "RuntimeError: as it was told" in importing.hear().reason


def test_a_worker_whose_imports_hang_is_unfit_and_says_where(importing, ranks):
    ranks.next()
    importing.let_pass(worker_room.IMPORT_LIMIT_S)
    reason = importing.hear().reason
    assert reason.startswith("importing what it needs takes longer than 100 s:")
    assert "make_ready" in reason


def left(driver, *processes):
    """What there is still when a worker has ended."""
    folders = [folder for folder in driver.memory if folder.exists()]
    return folders + [process.pid for process in processes if process.is_running()]


def test_a_worker_that_stops_leaves_nothing_behind(driver, ranks):
    rank = start(driver, ranks)
    rank.kill(signal.SIGSTOP)
    snapshot_in_memory(driver)
    processes = [psutil.Process(rank.pid), psutil.Process(driver.worker.process.pid)]
    driver.close()
    assert [] == left(driver, *processes)


def test_a_worker_that_stops_while_it_imports_leaves_nothing_behind(importing, ranks):
    process = psutil.Process(ranks.next().pid)
    importing.close()
    assert [] == left(importing, process)


def test_a_worker_that_stops_does_not_wait_for_a_server_that_hangs(driver, ranks, monkeypatch):
    monkeypatch.setattr(worker_room, "END_S", 0.1)
    rank = start(driver, ranks)
    driver.worker.process.send_signal(signal.SIGSTOP)
    processes = [psutil.Process(driver.worker.process.pid)]
    driver.close()
    rank.wait()
    assert [] == left(driver, *processes)
