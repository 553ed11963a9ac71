"""A rank puts by what is to be a checkpoint, and is never more than two ahead of the disk."""

import threading
from pathlib import Path

import pytest

from fairseq_ray_plugin.assignment import Backlog, Due
from fairseq_ray_plugin.protocol import Delayed, NoSnapshot, Snapshot
from fairseq_ray_plugin.worker import deposits as room
from fairseq_ray_plugin.worker.deposits import Deposits
from fairseq_ray_plugin.worker.snapshots import Snapshots

pytestmark = pytest.mark.timeout(60)

WAIT_S = 10
"""A test fails that waits longer for what it expects."""

A_WHILE_S = 0.1


def write(path):
    Path(path).write_text("state")


@pytest.fixture
def deposits(link, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SIGN_S", 0.01)
    deposits = Deposits(link, 3, Snapshots(link, write, (str(tmp_path),), 0), lambda: None)
    return deposits


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def is_still_waiting(thread):
    thread.join(A_WHILE_S)
    return thread.is_alive()


def ends(thread):
    thread.join(WAIT_S)
    return not thread.is_alive()


def test_what_is_due_is_a_snapshot_too_under_two_names(deposits, sent):
    assert deposits.add(7, write)
    snapshot, due = sent
    assert isinstance(snapshot, Snapshot) and Due(1, 3, 7, snapshot.path + ".due") == due
    assert Path(snapshot.path).samefile(due.snapshot)


def test_without_room_training_is_told_to_write_itself(deposits, sent):
    def full(path):
        raise OSError("no room")

    assert not deposits.add(7, full)
    assert isinstance(sent[0], NoSnapshot) and 1 == len(sent)


def test_what_is_to_go_to_a_store_is_given_up_without_room_and_that_is_said(link, tmp_path, sent):
    def full(path):
        raise OSError("no room")

    snapshots = Snapshots(link, write, (str(tmp_path),), 0)
    assert Deposits(link, 3, snapshots, lambda: None, is_only_way=True).add(7, full)
    assert isinstance(sent[1], Delayed) and (7, True) == (sent[1].update, sent[1].given_up)


def test_training_waits_for_a_slow_disk_but_not_for_a_full_one(deposits):
    deposits.add(1, write)
    deposits.add(2, write)
    third = in_thread(deposits.add, 3, write)
    assert is_still_waiting(third)
    deposits.hear(Backlog(2, 1, False))
    assert ends(third)
    fourth = in_thread(deposits.add, 4, write)
    deposits.hear(Backlog(3, 2, False))
    assert is_still_waiting(fourth)
    deposits.hear(Backlog(3, 2, True))
    assert ends(fourth)


def test_what_the_worker_has_not_heard_of_yet_counts(deposits):
    deposits.add(1, write)
    deposits.add(2, write)
    third = in_thread(deposits.add, 3, write)
    deposits.hear(Backlog(1, 1, False))
    assert is_still_waiting(third)
    deposits.hear(Backlog(2, 0, False))
    assert ends(third)


def test_the_end_waits_until_all_is_written_or_a_disk_has_failed_for_long(deposits, monkeypatch):
    deposits.wait_until_written()
    deposits.add(1, write)
    end = in_thread(deposits.wait_until_written)
    deposits.hear(Backlog(1, 1, True))
    assert is_still_waiting(end)
    deposits.hear(Backlog(1, 0, False))
    assert ends(end)
    deposits.add(2, write)
    monkeypatch.setattr(room, "LAST_WAIT_S", 0.05)
    end = in_thread(deposits.wait_until_written)
    assert is_still_waiting(end), "it is slow, and not stuck"
    deposits.hear(Backlog(2, 1, True))
    assert ends(end)
