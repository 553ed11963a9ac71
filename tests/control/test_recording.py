"""What a run observed can be decided once more, and comes out the same."""

import dataclasses
import io
import pickle
import signal
import subprocess
import sys

import pytest

from fairseq_ray_plugin.control import recording
from fairseq_ray_plugin.driver import RECORD, Driver
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Advanced,
    Ended,
    FromRank,
    Heard,
    Held,
    Observation,
    Place,
    Ready,
    Running,
    Saved,
    Start,
)
from fairseq_ray_plugin.report.journal import Journal


class Cluster:
    """Shows what a script says."""

    def __init__(self, observations):
        self._observations = iter(observations)
        self.performed = []
        self.perform = self.performed.append

    def observe(self, signal, unreached):
        return next(self._observations)

    def describe(self):
        return "two nodes"


def run_with_a_failure():
    """Two workers train, the process of one dies, they go on, and the user ends the run."""
    events = [
        [],
        [("worker-0", Ready()), ("worker-1", Ready())],
        [(f"worker-{n}", FromRank(1, Running(100 + n))) for n in (0, 1)],
        [(f"worker-{n}", FromRank(1, Advanced(1, 5.0))) for n in (0, 1)],
        [("worker-1", FromRank(1, Ended("was killed by SIGKILL")))],
        [("worker-0", FromRank(1, Held(20, asked=1)))],
        [("worker-0", FromRank(1, Saved(20, "snapshot_1.pt")))],
        [(f"worker-{n}", FromRank(2, Running(200 + n))) for n in (0, 1)],
        [(f"worker-{n}", FromRank(2, Advanced(21, 9.0))) for n in (0, 1)],
    ]
    for number, heard in enumerate(events):
        yield Observation(
            now=100.0 + number,
            room={"a": 1, "b": 1} if number == 0 else {},
            events=tuple(Heard(*event) for event in heard),
        )
    yield Observation(now=110.0, signal=signal.SIGTERM)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The recording of a run, and the actions that were performed in it."""
    path = tmp_path / "recording"
    monkeypatch.setenv(RECORD, str(path))
    observations = [*run_with_a_failure()]
    cluster = Cluster(observations)
    driver = Driver(cluster, ElasticConfig(cpu=True), None, Journal(str(tmp_path)))
    for _ in observations:
        driver.turn(None)
    driver.close()
    assert [1, 2] == [a.generation for a in cluster.performed if isinstance(a, Start)]
    return path, cluster.performed


def replay(recorded):
    return [*recording.replay(io.BytesIO(recorded))]


def test_a_recorded_run_is_decided_in_the_same_way(run):
    path, performed = run
    replayed = replay(path.read_bytes())
    assert [*run_with_a_failure()] == [moment.observation for moment, _ in replayed]
    assert all(moment.actions == actions for moment, actions in replayed)
    again = [action for _, actions in replayed for action in actions]
    assert performed == [action for action in again if action in performed]


def test_a_recording_that_was_cut_off_serves_as_far_as_it_goes(run):
    path, _ = run
    recorded = path.read_bytes()
    whole = replay(recorded)
    with path.open("rb") as file:
        pickle.load(file)
        begin = file.tell()
    last = len(pickle.dumps(whole[-1][0]))
    for end in {*range(begin, len(recorded), 199), *range(len(recorded) - last, len(recorded))}:
        part = replay(recorded[:end])
        assert whole[: len(part)] == part
    assert len(whole) - 1 == len(replay(recorded[:-1]))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0", b"compat is applied\nby this\n", b"INFO 2026", b'{"kind": "started"}\n'),
        *(b"PK\x03\x04", bytes(range(256)), pickle.dumps([1, 2]), b"\x80\x04\x95\xff\xff\xff"),
        *(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8c\x01\xff."),
    ],
)
def test_a_file_that_is_no_recording_is_refused(content):
    with pytest.raises(ValueError, match="not a recording"):
        replay(content)


def tool(path):
    command = [sys.executable, "-m", "fairseq_ray_plugin", "replay", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_tool_shows_what_was_observed_and_decided(run):
    path, _ = run
    shown = tool(path)
    assert (0, "") == (shown.returncode, shown.stderr)
    *lines, last = shown.stdout.splitlines()
    assert "10 observations; 0 times it was decided otherwise" == last
    assert "100.000" == lines[0]
    assert any("<" in line and "was killed by SIGKILL" in line for line in lines)
    assert any(">" in line and "Start(generation=2" in line for line in lines)
    assert not any("!" in line for line in lines)


def test_the_tool_says_where_it_was_decided_otherwise(run, tmp_path):
    path, _ = run
    with path.open("rb") as file:
        beginning, first, *others = recording.read(file)
    first = dataclasses.replace(first, actions=[Place("worker-0", "c")])
    other = tmp_path / "other"
    other.write_bytes(b"".join(map(pickle.dumps, (beginning, first, *others))))
    shown = tool(other)
    assert 1 == shown.returncode
    assert "  ! Place(worker='worker-0', node='c')" in shown.stdout.splitlines()
    assert "10 observations; 1 times it was decided otherwise" in shown.stdout


def test_the_tool_refuses_what_is_no_recording(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("compat is applied\nby this\n")
    shown = tool(path)
    assert (2, "") == (shown.returncode, shown.stdout)
    assert f"fairseq_ray_plugin: {path}: not a recording of fairseq_ray_plugin\n" == shown.stderr
    assert 2 == tool(tmp_path / "nothing").returncode
