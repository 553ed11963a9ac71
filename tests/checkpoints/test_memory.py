"""Snapshots' folders in memory go with the run, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_ray_plugin.checkpoints import memory
from fairseq_ray_plugin.checkpoints.memory import MemoryFolder


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "roots", lambda: [str(tmp_path / "shm"), str(tmp_path / "disk")])
    (tmp_path / "shm").mkdir()
    (tmp_path / "disk").mkdir()


def test_the_last_worker_on_a_node_takes_the_folders_away():
    first, second = MemoryFolder("run"), MemoryFolder("run")
    first.release()
    assert all(Path(folder).is_dir() for folder in second.folders)
    second.release()
    assert not any(Path(folder).exists() for folder in second.folders)


def test_only_the_newest_snapshot_takes_room():
    memory_folder = MemoryFolder("run")
    first, disk = memory_folder.folders
    left = ("snapshot_1.pt", "update_7.pt", "update_8.pt.123.tmp")  # the last by a killed writer
    for path in (*(f"{first}/{name}" for name in left), f"{disk}/update_9.pt"):
        Path(path).write_text("state")
    memory_folder.keep_only({f"{disk}/update_9.pt"})
    assert [["held"], ["held", "update_9.pt"]] == [sorted(os.listdir(f)) for f in (first, disk)]


def test_who_asks_late_takes_away_nothing_that_came_since():
    memory_folder = MemoryFolder("run")
    first, _ = memory_folder.folders
    for number in (6, 7, 8):
        Path(f"{first}/update_{number}.pt").write_text("state")
        os.utime(f"{first}/update_{number}.pt", (number, number))
    Path(f"{first}/update_9.pt.123.tmp").write_text("half a state")
    memory_folder.keep_only({f"{first}/update_7.pt"})  # it has just been heard of
    expected = ["held", "update_7.pt", "update_8.pt", "update_9.pt.123.tmp"]
    assert expected == sorted(os.listdir(first))
    memory_folder.keep_only({f"{first}/update_8.pt"})
    assert ["held", "update_8.pt", "update_9.pt.123.tmp"] == sorted(os.listdir(first))
    memory_folder.keep_only(set())
    assert ["held"] == os.listdir(first)


def leave_behind(tmp_path, run_id):
    """A worker is killed that holds a snapshot."""
    code = (
        "import os, sys; from fairseq_ray_plugin.checkpoints import memory; "
        "memory.roots = lambda: sys.argv[1:2]; folder = memory.MemoryFolder(sys.argv[2]); "
        "open(folder.disk + '/snapshot_1.pt', 'w').close(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "shm"), run_id])
    assert (tmp_path / "shm" / f"fairseq_ray_{run_id}" / "snapshot_1.pt").exists()


def test_what_a_killed_run_left_goes_at_the_next_start(tmp_path):
    leave_behind(tmp_path, "killed")
    other = MemoryFolder("run")
    assert ["fairseq_ray_run"] == os.listdir(tmp_path / "shm")
    other.release()


def test_what_a_killed_worker_left_serves_the_next_one_of_its_run(tmp_path):
    leave_behind(tmp_path, "run")
    successor = MemoryFolder("run")
    assert (tmp_path / "shm" / "fairseq_ray_run" / "snapshot_1.pt").exists()
    successor.release()
    assert [] == os.listdir(tmp_path / "shm")
