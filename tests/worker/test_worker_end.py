"""What a rank holds is saved, what nobody wants is removed, and a worker leaves nothing behind."""

import os
import resource
import shutil
import signal

import psutil
import pytest
from driving import hold, start

from fairseq_ray_plugin.assignment import Write
from fairseq_ray_plugin.checkpoints import claim
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
from fairseq_ray_plugin.worker import worker as worker_room

pytestmark = pytest.mark.timeout(60)


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


def test_a_save_dir_that_another_run_has_taken_is_left_to_it(driver):
    driver.last_checkpoint.write_text("the other run's")
    claim.place_of(str(driver.last_checkpoint.parent)).create("1.json", b"{}")
    driver.tell(Publish(snapshot_in_memory(driver)))
    assert "was taken over by another run" in driver.hear().says.reason
    assert "the other run's" == driver.last_checkpoint.read_text()


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
