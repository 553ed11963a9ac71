"""What a start and a restart take of the cores, step by step, at the size of a real model.

    python benchmarks/restart_cost.py                        # RoBERTa base
    python benchmarks/restart_cost.py --arch roberta_large

Two ranks forked from one preloaded server, without Ray: a generation that begins, another that goes
on from its state, received by rank 1. CPU seconds (user + system) and page faults mean something
also where other work runs beside them, as seconds do not. A line of JSON for each rank: its steps,
then u, an update (median); on rank 0 of the first also c, a plain copy of the state (all tensors,
one thread, new memory), and what it takes to put the state by, first and again. On the second's
rank 1 also how long the state was on its way, and how long gloo takes for one tensor as large, into
new memory and into the same again; these are seconds of the clock.
"""

import argparse
import json
import os
import pickle
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from fairseq_ray_plugin import compat  # noqa: E402

compat.apply()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from fairseq import options  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402

from fairseq_ray_plugin.assignment import Assignment, Preload  # noqa: E402
from fairseq_ray_plugin.training import transfer  # noqa: E402
from fairseq_ray_plugin.training.boundary import StateKeeper  # noqa: E402
from fairseq_ray_plugin.training.gate import Gate  # noqa: E402
from fairseq_ray_plugin.training.steps import Steps  # noqa: E402
from fairseq_ray_plugin.worker import forkserver, rank  # noqa: E402
from fairseq_ray_plugin.worker.server import KEEPS_MEMORY  # noqa: E402

NUM_UPDATES = 6
OPTIONS = (
    *("--cpu", "--distributed-backend", "gloo", "--distributed-world-size", "2"),
    *("--task", "masked_lm", "--criterion", "masked_lm", "--sample-break-mode", "complete"),
    *("--tokens-per-sample", "32", "--batch-size", "1", "--seed", "7", "--disable-validation"),
    *("--optimizer", "adam", "--lr", "1e-4", "--lr-scheduler", "inverse_sqrt", "--no-save"),
)


class Costs(Steps):
    """CPU seconds and thousands of page faults of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.costs = usage(), {}

    def end(self, name: str) -> None:
        now = usage()
        if name not in self.costs:  # later updates end the same steps once more
            self.costs[name] = difference(self.began, now)
        self.began = now


def usage() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_minflt / 1e3


def difference(begin: tuple[float, float], end: tuple[float, float]) -> tuple[float, int]:
    return round(end[0] - begin[0], 2), round(end[1] - begin[1])


def cost_of(action) -> tuple[float, int]:
    begin = usage()
    result = action()
    cost = difference(begin, usage())
    del result
    return cost


MOVED: list[tuple[float, int]] = []
"""Seconds, and bytes."""


def move(self: transfer._Move, original=transfer._Move.run) -> None:
    seconds = seconds_of(lambda: original(self))
    MOVED.append((seconds, self._pieces[-1][1]))


def seconds_of(action) -> float:
    dist.barrier()
    begin = time.monotonic()
    action()
    return round(time.monotonic() - begin, 2)


def by_gloo(num_bytes: int, place: int) -> list[float]:
    """One tensor from rank 0 to rank 1, in new memory and again."""
    tensor = torch.ones if place == 0 else torch.empty
    message = tensor(num_bytes, dtype=torch.uint8)
    return [seconds_of(lambda: dist.broadcast(message, 0)) for _ in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="roberta_base")
    arguments = parser.parse_args()
    if not KEEPS_MEMORY.keys() <= os.environ.keys():  # malloc reads them as a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    with (
        tempfile.TemporaryDirectory(prefix="frp") as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
    ):
        text = Path(folder) / "text"
        prepare = ROOT / "examples" / "roberta" / "preprocess.py"
        subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
        parsed = options.parse_args_and_arch(
            options.get_training_parser(), [str(text), "--arch", arguments.arch, *OPTIONS]
        )
        cfg = convert_namespace_to_omegaconf(parsed)
        cfg.checkpoint.save_dir = folder
        shared = os.path.join(memory, "model")
        preload = Preload(
            **{"cfg": pickle.dumps(cfg), "working_dir": folder, "python_path": ()},
            **{"user_dir": None, "shared_model": shared},
        )
        run = forkserver.make_fairseq_ready(preload)
        state = os.path.join(memory, "state.raw")
        for number, restore in ((1, None), (2, state)):
            generation(run, number, restore, state)


def generation(run, number: int, restore: str | None, state: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ranks = []
    for place in range(2):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            train(run, number, place, listener, restore, state)
    listener.close()
    for pid in ranks:
        os.waitpid(pid, 0)


def train(run, number: int, place: int, listener, restore: str | None, state: str) -> None:
    """As a worker's rank; never returns."""
    cfg, made = run.args
    assignment = Assignment(
        **{"generation": number, "rank": place, "world_size": 2, "restore": restore},
        **{"keeps_snapshots": False, "groups": (2,), "restart_epoch": False, "threads": 1},
        **{"user_dir": None, "snapshot_folders": (), "snapshot_updates": 0},
        master=listener.getsockname(),
    )
    transfer._Move.run = move
    keeper = StateKeeper(place, 2)
    keeper.steps = costs = Costs()
    ends: list[tuple[float, float]] = []

    def on_boundary(update: int) -> None:
        ends.append(usage())
        if len(ends) == NUM_UPDATES:
            report(number, place, keeper, costs, ends, state)
            os._exit(0)

    keeper.on_boundary = on_boundary
    gate = Gate(restore, stands_by=False, steps=keeper.steps, on_waiting=lambda: None)
    rank.inherit(cfg, made, assignment)
    rank.train(cfg, assignment, listener.detach() if place == 0 else None, keeper, gate)
    os._exit(1)


def report(number: int, place: int, keeper: StateKeeper, costs: Costs, ends, state: str) -> None:
    updates = [difference(a, b) for a, b in zip(ends[1:], ends[2:], strict=False)]
    result = {"generation": number, "rank": place, "steps": costs.costs}
    result["all"] = round(sum(cpu_s for cpu_s, _ in costs.costs.values()), 2)
    result["u"] = [round(statistics.median(values), 2) for values in zip(*updates, strict=True)]
    if number == 1 and place == 0:
        tensors = [p.data for p in keeper.trainer.model.parameters()]
        for values in keeper.trainer.optimizer.optimizer.state.values():
            tensors += [value for value in values.values() if torch.is_tensor(value)]
        result["c"] = cost_of(lambda: [tensor.clone() for tensor in tensors])
        result["put by"] = [cost_of(lambda: keeper.put_by(state)) for _ in range(2)]
    if number == 2:
        (seconds, num_bytes), *_ = MOVED
        gloo = by_gloo(num_bytes, place)
        if place == 1:
            result["moved"] = {"GB": round(num_bytes / 1e9, 2), "s": seconds, "gloo": gloo}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
