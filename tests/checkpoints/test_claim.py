"""A save dir has one writer: the living are left alone, the dead make way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fairseq_ray_plugin.checkpoints import claim as room
from fairseq_ray_plugin.checkpoints import claim_places, stores
from fairseq_ray_plugin.checkpoints.claim import Claim, InUse, is_overtaken, take
from fairseq_ray_plugin.checkpoints.claim_places import InFolder


class InStore:
    """Claims as an object store keeps them: objects are made whole, and replaced if they exist or
    not."""

    def __init__(self):
        self.objects, self.lock = {}, threading.Lock()

    def names(self):
        return sorted(self.objects)

    def read(self, name):
        return self.objects.get(name)

    def create(self, name, content):
        with self.lock:
            return self.objects.setdefault(name, content) is content

    def replace(self, name, content):
        self.objects[name] = content

    def remove(self, name):
        self.objects.pop(name, None)


@pytest.fixture(params=["folder", "store", "url"])
def place(request, tmp_path):
    match request.param:
        case "folder":
            return InFolder(str(tmp_path))
        case "store":
            return InStore()
    return claim_places.place_of(f"file://{tmp_path}")


class Time:
    """A clock that only waiting puts forward; at given times something happens."""

    def __init__(self, happens=None):
        self.now, self.happens = 1000.0, happens or {}

    def clock(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        for at in [at for at in self.happens if 1000.0 + at <= self.now]:
            self.happens.pop(at)()


def take_at(place, time):
    return take(place, "checkpoints", time.clock, time.pause)


def put(place, number=1, **changes):
    """Somebody's claim is there."""
    fields = {**room.dataclasses.asdict(room.this_process()), **changes}
    content = json.dumps(fields).encode()
    if not place.create(f"{number}.json", content):
        place.replace(f"{number}.json", content)


@pytest.fixture
def other():
    """Another process of this machine, which lives."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def started(pid):
    return room._start_of(pid)


# on one machine


def test_a_save_dir_in_use_is_refused_at_once_and_the_line_says_by_whom(place, other):
    put(
        place, pid=other.pid, started=started(other.pid), host="host-a", since="2026-01-02 03:04:05"
    )
    with pytest.raises(InUse) as refused:
        take_at(place, Time())
    assert "--save-dir checkpoints is in use by a run on host-a (pid " in str(refused.value)
    assert f"{other.pid}, since 2026-01-02 03:04:05)" in str(refused.value)
    with pytest.raises(InUse):
        room.refuse_if_in_use(place, "checkpoints")


def test_what_is_released_is_free_at_once(place):
    first = take_at(place, Time())
    first.release()
    room.refuse_if_in_use(place, "checkpoints")
    clock = Time()
    second = take_at(place, clock)
    assert (1000.0, 2) == (clock.now, second.number)
    assert ["2.json"] == place.names()
    second.release()


@pytest.mark.parametrize("how", ["is no more", "is a zombie", "has another's pid"])
def test_a_dead_runs_claim_is_taken_over_at_once(how, place, other):
    since = started(other.pid)
    if how == "is no more":
        other.kill()
        other.wait()
    elif how == "is a zombie":
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    else:
        since -= 1
    put(place, pid=other.pid, started=since)
    clock = Time()
    take_at(place, clock).release()
    assert 1000.0 == clock.now


def test_an_earlier_run_of_this_very_process_is_over(place):
    put(place)
    take_at(place, Time()).release()


def test_another_users_run_lives(place, monkeypatch):
    def not_permitted(pid, number):
        raise PermissionError

    put(place, pid=1, started=started(1))
    monkeypatch.setattr(os, "kill", not_permitted)
    with pytest.raises(InUse):
        take_at(place, Time())


# on several machines


def test_on_another_machine_a_run_lives_whose_claim_changes(place):
    put(place, machine="another", host="host-b")
    clock = Time({2.9: lambda: put(place, machine="another", host="host-b", beat=1)})
    with pytest.raises(InUse, match="a run on host-b"):
        take_at(place, clock)
    assert clock.now < 1000 + 2 * room.BEAT_S


def test_on_another_machine_a_run_is_dead_whose_claim_does_not_change(place, caplog):
    put(place, machine="another", host="host-b")
    clock = Time()
    taken = take_at(place, clock)
    assert 2 == taken.number
    assert room.SILENCE_S < clock.now - 1000 < room.SILENCE_S + 1
    assert "was in use by a run on host-b (pid" in caplog.text and "waiting up to" in caplog.text
    taken.release()


def test_on_another_machine_a_run_that_ends_meanwhile_is_not_waited_for(place):
    put(place, machine="another")
    clock = Time({1: lambda: put(place, machine="another", released=True)})
    take_at(place, clock).release()
    assert clock.now < 1000 + 2


def test_the_same_pid_in_another_container_is_another_process(place):
    boot, _ = room._machine().rsplit(" ", 1)
    put(place, machine=f"{boot} pid:[1]", pid=2**22 + 1)
    clock = Time()
    take_at(place, clock).release()
    assert clock.now > 1000 + room.SILENCE_S, "its death cannot be seen from here"


def test_a_container_on_this_machine_is_told_from_it():
    code = "from fairseq_ray_plugin.checkpoints import claim; print(claim._machine())"
    inside = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    if inside.returncode:
        pytest.skip(f"no namespaces here: {inside.stderr}")
    assert inside.stdout.strip() != room._machine()
    assert inside.stdout.split()[0] == room._machine().split()[0], "it was booted at the same time"


@pytest.mark.parametrize("content", [b"", b'{"host": "a', b"[]", b'{"host": "a"}'])
def test_half_a_claim_is_waited_for_and_stands_in_the_way_of_none(content, place):
    place.create("4.json", content)
    clock = Time()
    taken = take_at(place, clock)
    assert 5 == taken.number and clock.now > 1000 + room.SILENCE_S
    taken.release()


# two at once


def test_a_run_that_outlives_its_process_goes_on_holding_what_it_held(place, other):
    put(place, number=7, pid=other.pid, started=started(other.pid), run="a run")
    room.refuse_if_in_use(place, "checkpoints")  # it may be followed
    with pytest.raises(InUse):
        take(place, "checkpoints", run="another")
    again = take(place, "checkpoints", run="a run")
    again.release()
    assert 7 == again.number and ["7.json"] == place.names()


def test_of_newcomers_who_found_the_same_dead_run_the_slow_one_finds_the_fast_one(place, other):
    put(place, machine="another")

    def overtake():
        place.remove("1.json")
        put(place, 2, pid=other.pid, started=started(other.pid), host="the fast one")

    with pytest.raises(InUse, match="the fast one"):
        take_at(place, Time({room.SILENCE_S: overtake}))


def test_who_comes_so_late_that_the_next_number_is_free_again_finds_the_one_after(place, other):
    put(place, machine="another")

    def overtake_twice():
        place.remove("1.json")
        put(place, 3, pid=other.pid, started=started(other.pid), host="the second one")

    with pytest.raises(InUse, match="the second one"):
        take_at(place, Time({room.SILENCE_S: overtake_twice}))
    assert ["3.json"] == place.names()


def test_a_claim_whose_making_was_not_answered_is_ones_own():
    class Lossy(InStore):
        def create(self, name, content):
            super().create(name, content)
            return False  # the request was sent again

    taken = take_at(Lossy(), Time())
    assert 1 == taken.number
    taken.release()


RACE = """
import sys, time
from fairseq_ray_plugin.checkpoints.claim import InUse, take
from fairseq_ray_plugin.checkpoints.claim_places import InFolder
print("ready", flush=True)
sys.stdin.readline()
try:
    take(InFolder(sys.argv[1]), "there")
    print("won", flush=True)
    sys.stdin.readline()
except InUse as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize("dead", [True, False])
def test_of_20_newcomers_at_once_one_wins(dead, tmp_path, other):
    if dead:
        other.kill()
        other.wait()
        put(InFolder(str(tmp_path)), pid=other.pid, started=1)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate("end\n")
    (winner,) = (process for process, line in zip(processes, said, strict=True) if line == "won\n")
    assert 19 == sum("in use by a run on" in line and f"pid {winner.pid}," in line for line in said)


# holding it


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def renewed_often(place, number=1):
    """A claim, and what it says first."""
    me = room.this_process()
    place.create(f"{number}.json", room._written(me))
    return Claim(place, number, me, beat_s=0.01)


def beat(place, number=1):
    holder = room._read(place, number)
    return holder.beat if holder else 0


def test_a_claim_is_renewed_and_then_released(place):
    mine = renewed_often(place)
    until(lambda: beat(place) > 3)
    assert mine.lost is None and not room._read(place, 1).released
    mine.release()
    assert room._read(place, 1).released


def test_who_was_taken_for_dead_learns_of_it_and_writes_nothing_over_the_new_claim(place, other):
    mine = renewed_often(place)
    put(place, 2, pid=other.pid, host="host-c", nonce="theirs")
    until(lambda: mine.lost)
    assert mine.lost.startswith(f"a run on host-c (pid {other.pid}, since")
    mine.release()
    assert "theirs" == room._read(place, 2).nonce and not room._read(place, 2).released
    assert is_overtaken(place, 1) and not is_overtaken(place, 2)


def test_a_folder_that_somebody_emptied_ends_no_run(place):
    mine = renewed_often(place)
    place.remove("1.json")
    until(lambda: beat(place) > 0)
    assert mine.lost is None
    mine.release()


def test_where_a_store_is_away_that_is_as_a_disk_that_is():
    class Away(stores.Store):
        def list(self, folder=""):
            raise stores.Unreachable("nobody answers")

    away = claim_places.InStore(Away(), "elastic_claim")
    assert not is_overtaken(away, 1)
    with pytest.raises(OSError, match="nobody answers"):
        take(away, "s3://bucket/run")


def test_where_no_claims_are_to_be_seen_nobody_was_overtaken(tmp_path):
    assert not is_overtaken(InFolder(str(tmp_path / "not mounted here")), 7)


def test_a_disk_that_stalls_or_is_full_stops_nobody(place, caplog):
    mine = renewed_often(place)
    stalled = threading.Event()
    place.replace = lambda *_: stalled.wait(60)
    begin = time.monotonic()
    mine.release(limit_s=0.1)
    assert time.monotonic() - begin < 1 and mine.lost is None
    stalled.set()

    full = renewed_often(place, 5)
    place.replace = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    until(lambda: "cannot be renewed" in caplog.text)
    full.release()
    assert full.lost is None and 1 == caplog.text.count("cannot be renewed")


def test_a_process_that_stands_still_lives(place, other):
    other.send_signal(signal.SIGSTOP)
    put(place, pid=other.pid, started=started(other.pid))
    with pytest.raises(InUse):
        take_at(place, Time())


def test_a_claim_for_which_there_is_no_room_leaves_nothing_behind(tmp_path, monkeypatch):
    place = InFolder(str(tmp_path))

    class Full:
        def __init__(self, path, mode):
            Path(path).touch()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError(28, "No space left on device")

        def write(self, content):
            pass

    monkeypatch.setattr("builtins.open", Full)
    with pytest.raises(OSError, match="No space"):
        place.create("1.json", b"{}")
    monkeypatch.undo()
    assert [] == place.names()
