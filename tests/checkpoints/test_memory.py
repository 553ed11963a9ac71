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


def test_what_is_of_no_use_goes_and_so_does_what_killed_writers_left(tmp_path):
    memory_folder = MemoryFolder("run")
    first, disk = memory_folder.folders
    dead = subprocess.Popen(["true"])
    dead.wait()
    old, new = f"{first}/update_7_1.pt", f"{disk}/update_9_1.pt"
    for path in (old, new, f"{first}/x.pt.{dead.pid}.tmp", f"{first}/x.pt.{os.getpid()}.tmp"):
        Path(path).write_text("state")
    memory_folder.remove([old, f"{first}/gone.pt"])
    memory_folder.remove_partials()
    assert ["held", f"x.pt.{os.getpid()}.tmp"] == sorted(os.listdir(first)), "it is being written"
    assert ["held", "update_9_1.pt"] == sorted(os.listdir(disk))


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
