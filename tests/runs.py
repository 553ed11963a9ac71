"""Real training runs for tests: started, watched, disturbed, and read afterwards."""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import data
import psutil
import torch

from fairseq_ray_plugin.report import journal

TESTS = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
RECORDER = TESTS / "recorder"
STATEFUL = TESTS / "stateful"
NEARBY = TESTS / "nearby"
STREAMING = TESTS / "streaming"
CLOCKWORK = TESTS / "clockwork"
LIMIT_S = 150


STARTED: list["Run"] = []
"""Runs of the test that is under way."""


class Run:
    """One run of a launcher, as a process of its own.

    Args:
        folder: for its checkpoints, its output and what the recorder writes.
        command: what starts it, with arguments.
        faults, pause_s: see recorder/__init__.py.
    """

    def __init__(
        self, folder: Path, command: list, faults: list[dict] | None = None, pause_s: float = 0
    ):
        self.folder, self.save_dir, self.records = folder, folder / "save", folder / "records"
        self.faults = faults or []
        folder.mkdir(parents=True, exist_ok=True)
        (self.records / "hurry").unlink(missing_ok=True)
        environment = data.environment() | {
            "FAIRSEQ_RECORD": str(self.records),
            "FAIRSEQ_FAULTS": json.dumps(self.faults),
            "FAIRSEQ_PAUSE": str(pause_s),
        }
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        STARTED.append(self)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with open(self.folder / "output.txt", "a") as file:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                file.write(line)
                file.flush()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit code; a run that does not end in time is killed, and the test fails."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running after {limit_s} s:\n{self.tail()}") from None
        self.reader.join(10)
        return code

    def finish(self) -> "Run":
        """The run ends well, without pauses from now on; every fault asked for has happened."""
        self.records.mkdir(exist_ok=True)
        (self.records / "hurry").touch()
        code = self.wait()
        assert code == 0, f"exit code {code}:\n{self.tail()}"
        for number in range(len(self.faults)):
            assert (self.records / f"fired_{number}").exists(), f"fault {number} did not happen"
        return self

    def tail(self) -> str:
        """What happened, and what was said last."""
        keys = ("time", "kind", "generation", "world_size", "update", "cause")
        events = [[event.get(key) for key in keys] for event in self.events()[-40:]]
        lines = [*(" ".join(map(str, event)) for event in events), *self.lines[-60:]]
        return "\n".join(line[:300] for line in lines)

    def events(self, *kinds: str) -> list[dict]:
        path = self.save_dir / journal.FILE_NAME
        events = journal.read(str(path)) if path.exists() else []
        return [event for event in events if not kinds or event["kind"] in kinds]

    def until(self, condition, limit_s: float = LIMIT_S):
        """What `condition` returns, once it is true."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if value := condition():
                return value
            assert self.process.poll() is None, f"ended too early:\n{self.tail()}"
            time.sleep(0.02)
        raise AssertionError(f"did not happen in {limit_s} s:\n{self.tail()}")

    def until_update(self, update: int):
        return self.until(lambda: any(line["update"] >= update for line in self.steps()))

    def until_event(self, kind: str, count: int = 1) -> dict:
        return self.until(lambda: self.events(kind)[count - 1 : count])[0]

    def until_advanced(self, world_size: int, after: int) -> int:
        """A generation later than `after` has completed an update at that world size."""
        return self.until(
            lambda: [
                event["generation"]
                for event in self.events("advanced")
                if event["generation"] > after and event["world_size"] == world_size
            ]
        )[0]

    def ranks(self) -> list[dict]:
        """Rank, node and pid of the training processes of the newest generation."""
        return self.events("started")[-1]["ranks"]

    def lines_of(self, kind: str) -> list[dict]:
        lines = []
        for path in glob.glob(str(self.records / "*.jsonl")):
            lines += journal.read(path)
        return sorted((x for x in lines if x["kind"] == kind), key=lambda line: line["time"])

    def steps(self) -> list[dict]:
        """The recorder's lines on updates that a rank completed, oldest first."""
        return self.lines_of("done")

    def samples(self) -> dict[int, list[int]]:
        """Update -> ids of the samples it ate on all ranks; an update done again counts twice.

        An update is done when one rank has completed it: all gradients are in it then, also
        those of a rank that died before it could say so.
        """
        done = {(step["update"], step["group"]) for step in self.steps()}
        samples = defaultdict(list)
        for line in self.lines_of("begun"):
            if (line["update"], line["group"]) in done:
                samples[line["update"]] += line["ids"]
        return {update: sorted(ids) for update, ids in sorted(samples.items())}

    def redone(self) -> int:
        """Updates that were completed more than once."""
        done = defaultdict(set)
        for step in self.steps():
            done[step["update"]].add(step["group"])
        return sum(len(groups) - 1 for groups in done.values())

    def curve(self, *keys: str) -> dict[int, tuple]:
        """Update -> what was logged for it, as logged."""
        keys = keys or ("loss", "gnorm", "lr", "wpb", "bsz")
        curve = {}
        for number, line in enumerate(self.lines):
            if "train_inner" in line and "{" in line:
                values = whole(line[line.index("{") :], self.lines[number + 1 :])
                curve[int(values["num_updates"])] = tuple(values[key] for key in keys)
        return curve

    def losses(self) -> list[float]:
        return [float(loss) for (loss,) in self.curve("loss").values()]


def whole(text: str, later: list[str]) -> dict:
    """What a line of JSON says, of which the end may be a later line.

    Ray's log monitor tells in two what it reads while it is written: at the end of each 4096 bytes
    of a worker's log file, now and then.
    """
    for rest in ("", *later[:20]):
        with contextlib.suppress(ValueError):
            return json.loads(text + rest)
    raise AssertionError(f"half a line: {text}")


def ray_train(
    folder: Path,
    text: Path,
    model: list,
    *options,
    address="local",
    faults=None,
    pause_s=0,
    under=(),
) -> Run:
    """`fairseq-ray-train` on a cluster; `options` come last.

    Args:
        under: the command and arguments that it is started by.
    """
    return Run(
        folder,
        [
            *(*under, BIN / "fairseq-ray-train", text, *model),
            *("--save-dir", folder / "save", "--user-dir", RECORDER, "--ray-address", address),
            *options,
        ],
        faults,
        pause_s,
    )


def torchrun(folder: Path, text: Path, model: list, *options, num_ranks: int = 2) -> Run:
    """Stock fairseq, made to run on this Python; by the only back end that trains its encoders."""
    return Run(
        folder,
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", num_ranks, TESTS / "stock.py", text, *model),
            *("--save-dir", folder / "save", "--user-dir", RECORDER, *options),
            *("--ddp-backend", "legacy_ddp"),
        ],
    )


def kill(pid: int, name: str = "SIGKILL") -> None:
    os.kill(pid, signal.Signals[name])


def residences(address: str) -> list[psutil.Process]:
    """The processes in which control loops live, on that cluster."""
    there = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ray::Residence" in " ".join(process.cmdline()):
                raylet = process.parent()
                if raylet and address in " ".join(raylet.cmdline()):
                    there.append(process)
    return there


def check_epochs(run, num_epochs):
    """Every epoch ate every sample once."""
    samples = run.samples()
    assert list(range(1, len(samples) + 1)) == list(samples)
    length = len(samples) // num_epochs
    for begin in range(1, len(samples), length):
        eaten = [i for update in range(begin, begin + length) for i in samples[update]]
        assert list(range(len(eaten))) == sorted(eaten)


def same(expected, actual):
    """Equal to the last bit, tensors too."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(expected, actual)
    if isinstance(expected, dict):
        return list(expected) == list(actual) and same([*expected.values()], [*actual.values()])
    if isinstance(expected, list | tuple):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    return expected == actual
