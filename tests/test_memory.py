"""Snapshots' folders in memory go with the run, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_ray_plugin import memory
from fairseq_ray_plugin.memory import MemoryFolder


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "root", lambda: str(tmp_path))


def test_the_last_worker_on_a_node_takes_the_folder_away():
    first, second = MemoryFolder("run"), MemoryFolder("run")
    first.release()
    assert Path(second.path).is_dir()
    second.release()
    assert not Path(second.path).exists()


def test_only_the_newest_snapshot_takes_room():
    folder = MemoryFolder("run")
    for generation in (1, 2):
        Path(folder.snapshot(generation)).write_text("state")
    folder.keep_only(folder.snapshot(2))
    assert ["held", "snapshot_2.pt"] == sorted(os.listdir(folder.path))


def test_what_a_killed_worker_left_goes_at_the_next_start(tmp_path):
    code = (
        "import os, sys; from fairseq_ray_plugin import memory; "
        "memory.root = lambda: sys.argv[1]; folder = memory.MemoryFolder('killed'); "
        "open(folder.snapshot(1), 'w').close(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert (tmp_path / "fairseq_ray_killed" / "snapshot_1.pt").exists()
    other = MemoryFolder("run")
    assert ["fairseq_ray_run"] == os.listdir(tmp_path)
    other.release()
