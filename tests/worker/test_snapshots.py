"""Where a rank's state goes, and how often."""

import os
from pathlib import Path

import pytest

from fairseq_ray_plugin.protocol import NoSnapshot, Snapshot
from fairseq_ray_plugin.worker import snapshots
from fairseq_ray_plugin.worker.snapshots import Snapshots


def write(path):
    Path(path).write_text("state")


def not_a_folder(tmp_path):
    """As bad as one without room."""
    full = tmp_path / "full"
    full.write_text("")
    return str(full)


def test_a_snapshot_goes_to_disk_where_memory_has_no_room(tmp_path, caplog):
    path = snapshots.write(write, (not_a_folder(tmp_path), str(tmp_path)), "snapshot_1.pt")
    assert str(tmp_path / "snapshot_1.pt") == path
    assert "no room for a snapshot in" in caplog.text


def test_where_there_is_no_room_at_all_training_goes_on(tmp_path, link, sent):
    def full(path):
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch says

    Snapshots(link, full, (str(tmp_path),), 1).at_boundary(7)
    (message,) = sent
    assert isinstance(message, NoSnapshot) and "after update 7" in message.reason


def snapshots_that_take_two_seconds(clock, link, every):
    saved = []

    def put_by(path):
        clock[0] += 2
        saved.append(path)

    return saved, Snapshots(link, put_by, ("memory", "disk"), every)


def test_snapshots_cost_less_than_one_percent_of_the_time(clock, link):
    saved, taken = snapshots_that_take_two_seconds(clock, link, None)
    begin = clock[0]
    for update in range(20_000):
        clock[0] += 0.5
        taken.at_boundary(update)
    assert len(saved) > 10
    assert 2 * len(saved) < 0.005 * (clock[0] - begin), "and there are two that save"


def test_a_start_that_takes_long_is_not_followed_by_a_snapshot_of_what_it_has_just_read(
    clock, link
):
    saved, taken = snapshots_that_take_two_seconds(clock, link, None)
    clock[0] += 60
    taken.at_boundary(1)
    assert not saved
    clock[0] += snapshots.FIRST_SNAPSHOT_S
    taken.at_boundary(2)
    assert saved


@pytest.mark.parametrize(("every", "expected"), [(0, []), (40, [40, 80])])
def test_snapshots_come_as_often_as_asked_for(every, expected, clock, link, sent):
    _, taken = snapshots_that_take_two_seconds(clock, link, every)
    for update in range(1, 101):
        clock[0] += 100
        taken.at_boundary(update)
    names = [f"memory/update_{n}_{os.getpid()}_{i}.raw" for i, n in enumerate(expected, 1)]
    assert [*map(Snapshot, expected, names)] == sent
