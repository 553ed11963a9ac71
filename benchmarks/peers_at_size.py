"""What a lost process costs at the size of a real model, here and elsewhere; and other changes.

    python benchmarks/peers_at_size.py                              RoBERTa base; about 25 minutes
    python benchmarks/peers_at_size.py --contestants ours           7 minutes
    python benchmarks/peers_at_size.py --contestants torchft        3 minutes
    python benchmarks/peers_at_size.py --contestants ours --arch small roberta_base
    RAY_memory_monitor_refresh_ms=0 python benchmarks/peers_at_size.py --arch roberta_large  24 GB

`small` is the model of faults.py. Two nodes of one slot, a mini-batch of 32 tokens a rank, as in
recovery_at_size.py. A training process is killed some times under each launcher; then, under ours,
a node is killed, one is added, and one is told that it will be taken away, some times each. Who
goes on from checkpoints writes one every 8 updates, and the kill comes 4 updates after one. Another
run of ours, on one node, puts its state by every 4 updates.

Each run is a line in benchmarks/at_size.jsonl. What is there is not run again, unless `--anew` is
given: after an interruption the same command goes on. From all lines the tables in
docs/performance.md and docs/cost-by-size.svg are made. Seconds:

- u: an update, median.  c (ours): a plain copy of the state, as in recovery_at_size.py.
- a loss: from it to the end of the first update beyond those before; and of the first of these by
  two ranks.
- a node added or left: from the last update before the change to the end of the first after it.
- put by: how much longer than usual it is from the end of an update to the beginning of the next.
- steps (ours): of the first update after the change, from the journal.
"""

import argparse
import bisect
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cost_by_size
import faults
import recovery_at_size
from replay.launchers import LAUNCHERS, Launcher, wait_until

RESULTS = faults.ROOT / "benchmarks" / "at_size.jsonl"
CONTESTANTS = ("ours", "torchft", "torchrun", "walkthrough_2019", "ray_train")
SAVE_EVERY, AFTER_SAVE = 8, 4
CALM = 3
"""Updates of one group of ranks before anything is done to it."""

PUT_BY_EVERY, NUM_PUT_BY = 4, 6
LIMIT_S = 300.0
ON_GPU = (
    *("--distributed-backend", "gloo", "--fp16", "--fp16-init-scale", "4"),
    *("--tokens-per-sample", "512"),
)
OTHERS = ("--save-interval-updates", SAVE_EVERY, "--keep-interval-updates", 1)
STOCK = ("--ddp-backend", "legacy_ddp", "--no-epoch-checkpoints")
BYTES_A_PARAMETER = 12
"""Of the state: the parameter and Adam's two averages."""


def main() -> None:
    arguments = parse()
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = {(r["arch"], r["contestant"]): r for r in map(json.loads, lines)}
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ.update(RAY_TMPDIR=folder, OMP_NUM_THREADS="1")
        text = Path(folder) / "text"
        for arch, name in itertools.product(arguments.arch, arguments.contestants):
            if (arch, name) in results and not arguments.anew:
                continue
            if not text.exists():
                prepare = faults.ROOT / "examples" / "roberta" / "preprocess.py"
                subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
            print("measuring", arch, name, flush=True)
            result = {"arch": arch, "contestant": name, "date": time.strftime("%Y-%m-%d")}
            result |= measure(Path(folder) / f"{arch}_{name}", text, arch, name, arguments.runs)
            if name == "ours":
                result |= put_by(Path(folder) / f"{arch}_put_by", text, arch)
            print(json.dumps(result), flush=True)
            results[arch, name] = result
            RESULTS.write_text("".join(json.dumps(r) + "\n" for r in results.values()))
    cost_by_size.write([*results.values()], faults.ROOT / "docs")


def launcher_of(
    folder: Path, text: Path, arch: str, name: str, *own, most: int = 2, gpu: bool = False
) -> Launcher:
    common = (*(ON_GPU if gpu else recovery_at_size.ON_CPU), *recovery_at_size.TRAINING)
    model = faults.SMALL if arch == "small" else ("--arch", arch)
    # their memory, a model's each, would be more than there is
    loaders = ("--num-workers", 0) if arch == "roberta_large" else ()
    options = [*common, *model, *loaders, "--max-update", 1_000_000, *own]
    launcher = LAUNCHERS[name](folder, text, options, most)
    launcher.num_gpus = int(gpu)
    return launcher


def measure(
    folder: Path, text: Path, arch: str, name: str, num_runs: int, gpu: bool = False
) -> dict:
    """Args:
    gpu: both nodes share this machine's, so that ranks speak gloo: NCCL refuses two on one.
    """
    options = recovery_at_size.NO_SAVE if name == "ours" else OTHERS
    options += () if name in ("ours", "torchft") else STOCK
    launcher = launcher_of(folder, text, arch, name, *options, gpu=gpu)
    bench = Bench(launcher)
    begin = time.time()
    try:
        launcher.begin(("node0", "node1"))
        bench.until(bench.steps)
        result = {"start_s": round(bench.steps()[0]["time"] - begin, 1)}
        for number in range(num_runs):
            bench.kill_process(f"node{number % 2}")
        if name == "ours":
            bench.change_nodes(num_runs)
    except TimeoutError as error:
        result = {"failed": str(error)}
        print(launcher.runs[0].tail(), file=sys.stderr)
    finally:
        launcher.end()
    steps = [step for step in bench.steps() if step["world"] == 2]
    times = recovery_at_size.update_times(steps)
    result["u_s"] = round(statistics.median(times), 4) if times else None
    if name == "ours" and times:
        num_params = recovery_at_size.num_parameters(launcher.runs[0])
        result["c_s"] = round(recovery_at_size.copy_seconds(num_params), 4)
        result["state_bytes"] = BYTES_A_PARAMETER * num_params
    return result | {"redone": launcher.runs[0].redone(), "events": bench.events}


def put_by(folder: Path, text: Path, arch: str, gpu: bool = False) -> dict:
    """For how long training stands each time: on one node, for others have memory of their own."""
    options = (*recovery_at_size.NO_SAVE[:-1], PUT_BY_EVERY)
    launcher = launcher_of(folder, text, arch, "ours", *options, most=1, gpu=gpu)
    bench = Bench(launcher)
    try:
        launcher.begin(("node0",))
        last = PUT_BY_EVERY * NUM_PUT_BY
        bench.until(lambda: bench.steps() and bench.steps()[-1]["update"] > last)
    except TimeoutError as error:
        print(launcher.runs[0].tail(), file=sys.stderr)
        return {"failed": str(error)}
    finally:
        launcher.end()
    begun = {line["update"]: line["time"] for line in launcher.lines("begun")}
    gaps = {
        step["update"]: begun[step["update"] + 1] - step["time"]
        for step in bench.steps()
        if 1 < step["update"] <= last
    }
    usual = statistics.median(gap for update, gap in gaps.items() if update % PUT_BY_EVERY)
    at = range(PUT_BY_EVERY, last + 1, PUT_BY_EVERY)
    return {"put_by_s": [round(gaps[update] - usual, 4) for update in at]}


class Bench:
    """Changes under a launcher, one after the other, and what each cost."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.events: dict[str, list[dict]] = {}
        self.num_nodes = 2
        self._steps: list[dict] = []
        self._read: dict[Path, int] = {}

    def until(self, condition, limit_s: float = LIMIT_S):
        if not wait_until(self.launcher, condition, limit_s):
            raise TimeoutError(f"did not go on in {limit_s:.0f} s")

    def steps(self) -> list[dict]:
        """The recorder's lines on completed updates, oldest first.

        What has been read is kept: a small model completes thousands, and to read them all again
        and again would take the cores from it.
        """
        for path in self.launcher.runs[0].records.glob("*.jsonl"):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(text)
            self._steps += [s for s in map(json.loads, text.splitlines()) if s["kind"] == "done"]
        self._steps.sort(key=lambda step: step["time"])
        return self._steps

    def calm(self, world: int) -> None:
        """The newest ranks train, and a checkpoint that others go on from is a while ago."""

        def is_calm() -> bool:
            steps = self.steps()
            last = steps[-8 * CALM :]
            updates = sorted({s["update"] for s in last if s["group"] == last[-1]["group"]})
            return (
                steps[-1]["world"] == world
                and len(updates) > CALM
                and updates[-1] > SAVE_EVERY
                and updates[-1] % SAVE_EVERY == AFTER_SAVE
            )

        self.until(is_calm)

    def kill_process(self, node: str) -> None:
        self.calm(2)
        assert self.launcher.kill(node)
        self.note("kill-process", time.time(), world=2)

    def change_nodes(self, count: int) -> None:
        """A node is killed and one added, then one drained and one added, some times."""
        cluster = self.launcher.cluster
        nodes = ["node0", "node1"]
        for kind in ("kill-node", "drain") * count:
            self.calm(2)
            node = nodes.pop()
            at = time.time()
            if kind == "drain":
                cluster.drain(self.launcher.nodes[node], 60)
            else:
                self.launcher.remove(node)
            self.note(kind, at, world=1)
            if kind == "drain":
                self.launcher.remove(node)
            self.calm(1)
            self.num_nodes += 1
            nodes.append(f"node{self.num_nodes}")
            at = time.time()
            self.launcher.add(nodes[-1])
            self.note("add-node", at, world=2)

    def note(self, kind: str, at: float, world: int) -> None:
        """Wait until training goes on at that size, and keep what it cost."""
        reached = max(step["update"] for step in self.steps() if step["time"] <= at)
        old = {step["group"] for step in self.steps() if step["time"] <= at}

        def beyond() -> list[dict]:
            begin = bisect.bisect_right(self.steps(), at, key=lambda step: step["time"])
            after = self._steps[begin:]
            return [s for s in after if s["update"] > reached and s["group"] not in old]

        def whole() -> list[dict]:
            return [step for step in beyond() if step["world"] == world]

        self.until(whole)
        first, last = beyond()[0], whole()[0]
        before = max(
            step["time"]
            for step in self.steps()
            if step["time"] < last["time"] and step["group"] != last["group"]
        )
        cost = {
            "recovery_s": round(first["time"] - at, 3),
            "whole_s": round(last["time"] - at, 3),
            "stall_s": round(last["time"] - before, 3),
        }
        cost |= self.told(at, world)
        print(kind, json.dumps(cost), file=sys.stderr, flush=True)
        self.events.setdefault(kind, []).append(cost)

    def told(self, at: float, world: int) -> dict:
        """What ours says in its journal of the generation that went on."""
        run = self.launcher.runs[0]

        def advanced() -> list[dict]:
            events = run.events("advanced")
            return [e for e in events if e["time"] > at and e["world_size"] == world]

        if not run.events():
            return {}
        self.until(advanced)
        return {"steps": {name: round(s, 3) for name, s in advanced()[0]["steps"].items()}}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["roberta_base"], help="small, or fairseq's")
    parser.add_argument("--contestants", nargs="+", choices=LAUNCHERS, default=CONTESTANTS)
    parser.add_argument("--runs", type=int, default=3, help="of each kind of change")
    parser.add_argument("--anew", action="store_true", help="also what there is a line of")
    return parser.parse_args()


if __name__ == "__main__":
    main()
