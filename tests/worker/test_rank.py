"""A rank's own side: what it tells, and where its state goes."""

from pathlib import Path

import pytest

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.worker import rank


class Link:
    """Remembers what was sent."""

    def __init__(self):
        self.sent = []

    def send(self, *message):
        self.sent.append(message)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(rank.time, "monotonic", lambda: now[0])
    return now


def test_a_snapshot_goes_to_disk_where_memory_has_no_room(tmp_path, caplog):
    full = tmp_path / "full"
    full.write_text("not a folder")  # as bad as one without room
    disk = tmp_path / "disk"
    disk.mkdir()

    def save(path):
        Path(path).write_text("state")

    path = rank._save(save, (str(full), str(disk)), "snapshot_1.pt")
    assert str(disk / "snapshot_1.pt") == path
    assert "no room for a snapshot in" in caplog.text


def test_progress_is_told_once_a_second_and_whenever_something_else_begins(clock):
    link = Link()
    progress = rank._Progress(link, rank=0)
    for update in range(1, 31):
        progress.advanced(update)
        clock[0] += 0.1
        progress.doing(protocol.TRAINING)
    assert 3 == len(link.sent)
    del link.sent[:]
    for _ in range(20):
        progress.doing(protocol.VALIDATING)
        clock[0] += 0.1
    progress.doing(protocol.TRAINING)
    expected = [protocol.VALIDATING, protocol.VALIDATING, protocol.TRAINING]
    assert expected == [what for _, _, what in link.sent]


def test_other_ranks_tell_of_their_first_update_alone(clock):
    link = Link()
    progress = rank._Progress(link, rank=1)
    for update in range(1, 31):
        progress.advanced(update)
        progress.doing("validating")
        clock[0] += 1
    assert [("advanced", 1)] == link.sent


def test_a_validation_caught_up_with_is_told_and_the_first_update_after_it_at_once(clock):
    link = Link()
    progress = rank._Progress(link, rank=0)
    for what in (protocol.VALIDATING, protocol.LOADING):
        progress.doing(what)
    progress.advanced(41)
    assert [protocol.VALIDATING, protocol.LOADING] == [what for _, _, what in link.sent[:2]]
    assert [("advanced", 41)] == link.sent[2:]


class Keeper:
    """A keeper whose states take two seconds to save."""

    def __init__(self, clock):
        self.clock, self.saved = clock, []

    def put_by(self, path):
        self.clock[0] += 2
        self.saved.append(path)


def snapshots(clock, every):
    keeper = Keeper(clock)

    class Assignment:
        snapshot_updates, snapshot_folders = every, ("memory", "disk")

    return keeper, rank._Snapshots(Link(), keeper, Assignment)


def test_snapshots_cost_less_than_one_percent_of_the_time(clock):
    keeper, taken = snapshots(clock, None)
    begin = clock[0]
    for update in range(20_000):
        clock[0] += 0.5
        taken.at_boundary(update)
    assert len(keeper.saved) > 10
    assert 2 * len(keeper.saved) < 0.005 * (clock[0] - begin), "and there are two that save"


@pytest.mark.parametrize(("every", "expected"), [(0, []), (40, ["update_40.pt", "update_80.pt"])])
def test_snapshots_come_as_often_as_asked_for(every, expected, clock):
    keeper, taken = snapshots(clock, every)
    for update in range(1, 101):
        clock[0] += 100
        taken.at_boundary(update)
    assert expected == [Path(path).name for path in keeper.saved]
