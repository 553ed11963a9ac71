"""A training under each launcher, on nodes of one slot that are added and removed.

Nodes are Ray's for what runs on Ray. Elsewhere a node is torchrun's agent and all below it; what
has to outlive nodes there (torchrun's store, torchft's lighthouse) runs beside, as Ray's head does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faults
import psutil
import runs

CONTESTANTS = Path(__file__).resolve().parent.parent / "contestants"


class Launcher:
    """Nodes, and a training on them; what it writes down is in `records` of its folder.

    Args:
        options: of fairseq-train, without `--save-dir` and `--user-dir`.
        most: the most nodes that there will be.
    """

    num_gpus = 0
    """Of a node of Ray's; nodes on one machine share its GPU."""

    def __init__(self, folder: Path, text: Path, options: list[str], most: int) -> None:
        self.folder, self.most = folder, most
        self.arguments = [text, *options, "--save-dir", folder / "save"]
        self.arguments += ["--user-dir", runs.RECORDER]
        self.runs: list[runs.Run] = []
        self.nodes: dict[str, Any] = {}

    def begin(self, nodes: tuple[str, ...]) -> None:
        """Nodes are there, and training begins."""
        raise NotImplementedError

    def add(self, name: str) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """The node and all that runs on it die at once."""
        raise NotImplementedError

    def processes(self, name: str) -> list[psutil.Process]:
        raise NotImplementedError

    def end(self) -> None:
        """Nothing of it is left."""
        raise NotImplementedError

    def kill(self, name: str) -> bool:
        """The node's training process dies, if there is one that trains."""
        there = {process.pid for process in self.processes(name)}
        lines = self.lines("begun")
        pid = next((line["pid"] for line in reversed(lines) if line["pid"] in there), None)
        if pid is None:
            return False
        runs.kill(pid)
        return True

    def lines(self, kind: str) -> list[dict]:
        return self.runs[0].lines_of(kind) if self.runs else []

    def is_alive(self) -> bool:
        return any(run.process.poll() is None for run in self.runs)


class OnRay(Launcher):
    """One command, for all nodes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stack = contextlib.ExitStack()

    def begin(self, nodes: tuple[str, ...]) -> None:
        self.cluster = self.stack.enter_context(faults.cluster(num_nodes=0))
        for name in nodes:
            self.add(name)
        command = [*self.command(), *self.arguments, "--ray-address", self.cluster.address]
        self.runs.append(runs.Run(self.folder, command))

    def command(self) -> list[Any]:
        raise NotImplementedError

    def add(self, name: str) -> None:
        self.nodes[name] = self.cluster.add(num_gpus=self.num_gpus)

    def remove(self, name: str) -> None:
        self.cluster.kill(self.nodes.pop(name))

    def processes(self, name: str) -> list[psutil.Process]:
        return self.cluster.processes(self.nodes[name])

    def end(self) -> None:
        for run in self.runs:
            run.process.terminate()
            with contextlib.suppress(AssertionError):
                run.wait(30)
            faults.end_all(run)
        self.stack.close()


class Ours(OnRay):
    def command(self) -> list[Any]:
        return [runs.BIN / "fairseq-ray-train"]


class RayTrain(OnRay):
    def command(self) -> list[Any]:
        self.arguments += ["--max-workers", self.most]
        return [sys.executable, CONTESTANTS / "ray_train.py"]


class Walkthrough(OnRay):
    def command(self) -> list[Any]:
        return [sys.executable, CONTESTANTS / "walkthrough_2019.py"]


class Agents(Launcher):
    """A process of its own for each node, that starts the training process below it."""

    def begin(self, nodes: tuple[str, ...]) -> None:
        self.beside()
        for name in nodes:
            self.add(name)

    def beside(self) -> None:
        """What has to outlive nodes."""

    def command(self, name: str) -> list[Any]:
        raise NotImplementedError

    def add(self, name: str) -> None:
        run = runs.Run(self.folder, [*self.command(name), *self.arguments])
        self.runs.append(run)
        self.nodes[name] = run

    def remove(self, name: str) -> None:
        victims = self.processes(name)
        del self.nodes[name]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        try:
            agent = psutil.Process(self.nodes[name].process.pid)
            return [agent, *agent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        for name in list(self.nodes):
            self.remove(name)
        for run in self.runs:
            run.process.wait(30)


class Torchrun(Agents):
    """Stock fairseq; all start anew, from the newest checkpoint, at every change.

    What would wait longest is set lower than by default: a node that says nothing is given up after
    3 s, not 15, and when others join no more is waited than 1 s, not 30.
    """

    def beside(self) -> None:
        from torch.distributed import TCPStore

        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # or the next group would get the port of one whose host is gone
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"

    def command(self, name: str) -> list[Any]:
        waits = "is_host=0,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", f"1:{self.most}"),
            *("--nproc-per-node", 1, "--max-restarts", 100_000, "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"127.0.0.1:{self.store.port}", "--rdzv-conf", waits),
            *("--rdzv-id", "replay", CONTESTANTS / "under_torchrun.py"),
        ]


class Torchft(Agents):
    """torchft's Manager around the same model; the others go on while one starts again.

    Its lighthouse, too, waits less than by default: 1 s for heartbeats (5 s) and stragglers (60 s).
    """

    def beside(self) -> None:
        self.count = 0
        port = free_port()
        lighthouse = shutil.which("torchft_lighthouse", path=str(runs.BIN))
        assert lighthouse, "torchft is not installed: pip install torchft==0.2.0"
        self.lighthouse = subprocess.Popen(
            [lighthouse, "--min_replicas", "1", "--bind", f"0.0.0.0:{port}"]
            + ["--heartbeat_timeout_ms", "1000", "--join_timeout_ms", "1000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.environ["TORCHFT_LIGHTHOUSE"] = f"http://127.0.0.1:{port}"

    def command(self, name: str) -> list[Any]:
        # a number that no other replica has now; which part of the data it reads follows from it
        taken = {run.number for run in self.nodes.values()}
        self.number = next(n for n in range(self.most) if n not in taken)
        os.environ["REPLICA"] = str(self.number)
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", 1, "--max-restarts", 100_000, CONTESTANTS / "with_torchft.py"),
            *("--replicas", self.most),
        ]

    def add(self, name: str) -> None:
        super().add(name)
        self.nodes[name].number = self.number

    def end(self) -> None:
        super().end()
        self.lighthouse.kill()
        self.lighthouse.wait()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


LAUNCHERS: dict[str, type[Launcher]] = {
    "ours": Ours,
    "ray_train": RayTrain,
    "torchrun": Torchrun,
    "torchft": Torchft,
    "walkthrough_2019": Walkthrough,
}


def wait_until(launcher: Launcher, condition: Any, limit_s: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and launcher.is_alive():
        if condition():
            return True
        time.sleep(0.1)
    return False
