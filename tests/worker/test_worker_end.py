"""What a rank holds is saved, what nobody wants is removed, and a worker leaves nothing behind."""

import dataclasses
import os
import shutil
import signal
import socket

import psutil
import pytest
from driving import hold, start

from fairseq_ray_plugin.assignment import Write, WriteCheckpoint, Written
from fairseq_ray_plugin.protocol import (
    Copy,
    Drop,
    Ended,
    FromRank,
    InMemory,
    Publish,
    Save,
    Saved,
    Unfit,
    Unsaved,
)
from fairseq_ray_plugin.worker import server

pytestmark = pytest.mark.timeout(60)


# saving


def test_what_is_held_goes_to_the_nodes_memory_or_becomes_the_last_checkpoint(driver, ranks):
    rank = start(driver, ranks)
    hold(driver, rank)
    driver.tell(Save(as_checkpoint=False))
    folders = tuple(map(str, driver.memory))
    assert Write(folders, f"held_1_{rank.pid}.raw") == rank.hear()
    driver.tell(Save(as_checkpoint=True))
    save_dir = str(driver.last_checkpoint.parent)
    assert Write((save_dir,), "checkpoint_last.pt", as_checkpoint=True) == rank.hear()
    rank.say(Saved(7, str(driver.last_checkpoint)))
    assert FromRank(1, Saved(7, str(driver.last_checkpoint))) == driver.hear()


def test_without_a_rank_nothing_is_saved(driver, ranks):
    driver.tell(Save(as_checkpoint=True))
    assert FromRank(0, Unsaved("the training process that held it is no more")) == driver.hear()
    start(driver, ranks).exit(0)
    assert FromRank(1, Ended("exited with code 0")) == driver.hear()
    driver.tell(Save(as_checkpoint=True))
    assert FromRank(1, Unsaved("the training process that held it is no more")) == driver.hear()


def snapshot_in_memory(driver, update=7):
    path = driver.memory[0] / f"update_{update}.raw"
    path.write_text("state")
    return Copy(update, InMemory("node", str(path)))


def test_what_is_held_goes_to_a_store_by_way_of_memory(driver, ranks):
    job = driver.worker.job = dataclasses.replace(
        driver.worker.job, store="s3://b/run", last_checkpoint="s3://b/run/checkpoint_last.pt"
    )
    rank = start(driver, ranks)
    hold(driver, rank)
    for answer in (Written(job.last_checkpoint), "nobody answers"):
        driver.tell(Save(as_checkpoint=True))
        order = rank.hear()
        assert Write(tuple(map(str, driver.memory)), order.name) == order
        held = driver.memory[0] / order.name
        held.write_text("state")
        rank.say(Saved(7, str(held)))
        writer = ranks.next()
        there = writer.task
        assert (str(held), job.last_checkpoint) == (there.snapshot, there.target)
        assert job.store == there.store and there.passage.startswith(str(driver.memory[-1]))
        writer.say(writer.pid, answer)
        said = driver.hear().says
        assert not held.exists(), "it takes memory"
        if isinstance(answer, Written):
            assert Saved(7, job.last_checkpoint) == said
    assert Unsaved(f"{job.last_checkpoint}: nobody answers") == said
    driver.tell(Save(as_checkpoint=False))
    rank.hear()
    rank.say(Saved(7, "held.raw"))
    assert FromRank(1, Saved(7, "held.raw")) == driver.hear()


def test_a_snapshot_becomes_the_last_checkpoint_also_where_its_rank_is_no_more(driver, ranks):
    snapshot = snapshot_in_memory(driver)
    target = str(driver.last_checkpoint)
    driver.tell(Publish(snapshot))
    writer = ranks.next()
    assert WriteCheckpoint(snapshot.place.path, target) == writer.task
    writer.say(writer.pid, Written(target))
    assert FromRank(0, Saved(7, target)) == driver.hear()
    driver.tell(Publish(snapshot))
    ranks.next().say("the disk is full")
    assert FromRank(0, Unsaved(f"{target}: the disk is full")) == driver.hear()
    driver.tell(Publish(snapshot))
    ranks.next().kill()
    assert "killed" in driver.hear().says.reason


def test_what_is_not_wanted_any_more_takes_no_room(driver):
    first, disk = driver.memory
    old = snapshot_in_memory(driver)
    (disk / "update_9.raw").write_text("state")
    driver.tell(Drop(frozenset([old.place.path])))
    now = [sorted(os.listdir(f)) for f in (first, disk)]
    assert [["held", "spare"], ["held", "update_9.raw"]] == now, "one is used again"
    driver.tell(Drop(frozenset([snapshot_in_memory(driver, 8).place.path])))
    assert ["held", "spare"] == sorted(os.listdir(first))


def test_what_a_killed_rank_left_of_a_snapshot_goes_with_it(driver, ranks):
    rank = start(driver, ranks)
    partial = driver.memory[0] / f"update_7.raw.{socket.gethostname()}.{rank.pid}.tmp"
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
    driver.worker.server.process.kill()
    rank.wait()
    assert Unfit("its preloaded server died") == driver.hear()
    assert driver.hears_nothing()


def test_a_worker_that_cannot_import_is_unfit(importing, ranks):
    ranks.next().fail()
    assert "RuntimeError: as it was told" in importing.hear().reason


def test_a_worker_whose_imports_hang_is_unfit_and_says_where(importing, ranks):
    ranks.next()
    importing.let_pass(server.IMPORT_LIMIT_S)
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
    processes = [psutil.Process(rank.pid), psutil.Process(driver.worker.server.process.pid)]
    driver.close()
    assert [] == left(driver, *processes)


def test_a_worker_that_stops_while_it_imports_leaves_nothing_behind(importing, ranks):
    process = psutil.Process(ranks.next().pid)
    importing.close()
    assert [] == left(importing, process)


def test_a_worker_that_stops_does_not_wait_for_a_server_that_hangs(driver, ranks, monkeypatch):
    monkeypatch.setattr(server, "END_S", 0.1)
    rank = start(driver, ranks)
    driver.worker.server.process.send_signal(signal.SIGSTOP)
    processes = [psutil.Process(driver.worker.server.process.pid)]
    driver.close()
    rank.wait()
    assert [] == left(driver, *processes)
