"""Snapshots' folders in memory go with the run, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_files import killed_while_writing

from fairseq_ray_plugin.checkpoints import memory
from fairseq_ray_plugin.checkpoints.memory import MemoryFolder


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "roots", lambda: [str(tmp_path / "shm"), str(tmp_path / "disk")])
    (tmp_path / "shm").mkdir()
    (tmp_path / "disk").mkdir()


def test_the_last_worker_on_a_node_takes_the_folders_away():
    first, second = MemoryFolder("run", "node"), MemoryFolder("run", "node")
    first.release()
    assert all(Path(folder).is_dir() for folder in second.folders)
    second.release()
    assert not any(Path(folder).exists() for folder in second.folders)


def test_what_is_of_no_use_goes_and_so_does_what_killed_writers_left(tmp_path):
    memory_folder = MemoryFolder("run", "node")
    first, disk = memory_folder.folders
    old, new = f"{first}/update_7_1.pt", f"{disk}/update_9_1.pt"
    for path in (old, new):
        Path(path).write_text("state")
    left = killed_while_writing(f"{first}/update_8_1.pt")
    assert left.exists()
    memory_folder.remove([old, f"{first}/gone.pt"])
    memory_folder.remove_partials()
    assert ["held"] == sorted(os.listdir(first))
    assert ["held", "update_9_1.pt"] == sorted(os.listdir(disk))


def test_a_killed_workers_own_folders_go_with_the_next_one_and_a_living_ones_stay():
    memory_folder = MemoryFolder("run", "node")
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        Path(memory_folder.folders[-1], f"passage_{pid}").mkdir()
    memory_folder.remove_folders()
    assert ["held", f"passage_{os.getpid()}"] == sorted(os.listdir(memory_folder.folders[-1]))


def leave_behind(tmp_path, run_id):
    """A worker is killed that holds a snapshot."""
    code = (
        "import os, sys; from fairseq_ray_plugin.checkpoints import memory; "
        "memory.roots = lambda: sys.argv[1:2]; folder = memory.MemoryFolder(sys.argv[2], 'node'); "
        "open(folder.folders[0] + '/snapshot_1.pt', 'w').close(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "shm"), run_id])
    (folder,) = (tmp_path / "shm").iterdir()
    assert (folder / "snapshot_1.pt").exists()
    return folder


def test_what_a_killed_run_left_goes_at_the_next_start(tmp_path):
    left = leave_behind(tmp_path, "killed")
    other = MemoryFolder("run", "node")
    assert other.folders[0] != str(left) and not left.exists()
    other.release()


def test_what_a_killed_worker_left_serves_the_next_one_of_its_run(tmp_path):
    left = leave_behind(tmp_path, "run")
    successor = MemoryFolder("run", "node")
    assert successor.folders[0] == str(left) and (left / "snapshot_1.pt").exists()
    successor.release()
    assert [] == os.listdir(tmp_path / "shm")


# folders that somebody else made


def planted(tmp_path, kind):
    """Somebody has learned the name of the run's folder on disk, and was there first."""
    folder = tmp_path / "disk" / memory.folder_name("run", str(tmp_path / "disk"), "node")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)  # private, but not what was meant
    match kind:
        case "another user's":
            folder.mkdir(mode=0o700)
            os.chown(folder, 65534, 65534)
        case "open to all":
            folder.mkdir()
            folder.chmod(0o777)
        case "a link":
            folder.symlink_to(elsewhere)
        case "a file":
            folder.touch()
    return folder


@pytest.mark.parametrize("kind", ["another user's", "open to all", "a link", "a file"])
def test_a_folder_that_was_planted_is_left_alone_and_the_run_keeps_the_other(
    kind, tmp_path, caplog
):
    if kind == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    folder = planted(tmp_path, kind)
    ours = MemoryFolder("run", "node")
    assert [str(tmp_path / "shm")] == [os.path.dirname(folder) for folder in ours.folders]
    assert f"no snapshots in {tmp_path / 'disk'}" in caplog.text
    ours.release()
    assert os.path.lexists(folder), "it is not ours to remove"


def test_without_any_folder_of_its_own_nothing_is_taken(tmp_path):
    planted(tmp_path, "open to all")
    (tmp_path / "shm").chmod(0o777)
    ours = MemoryFolder("run", "node")
    assert () == ours.folders
    shm, disk = ours.refusals
    assert f"others may rename what is in {tmp_path / 'shm'}: chmod +t it" in shm
    assert "is not this user's alone" in disk
    ours.release()


def test_who_sees_one_folder_cannot_tell_the_name_of_the_other():
    ours = MemoryFolder("run", "node")
    first, second = map(os.path.basename, ours.folders)
    assert first != second and first.endswith("_node") and second.endswith("_node")
    assert all(0o700 == os.stat(folder).st_mode & 0o7777 for folder in ours.folders)
    ours.release()


def test_what_another_user_left_is_not_removed_and_nothing_is_opened_there(tmp_path):
    folder = tmp_path / "shm" / f"{memory.PREFIX}mine"
    folder.mkdir()
    folder.chmod(0o777)
    os.mkfifo(folder / "held")
    MemoryFolder("run", "node").release()
    assert (folder / "held").exists()
