"""What a lost process costs at the size of a real model, here and elsewhere; and other changes.

    python benchmarks/peers_at_size.py                              RoBERTa base; about 25 minutes
    python benchmarks/peers_at_size.py --contestants ours           6 minutes
    python benchmarks/peers_at_size.py --contestants torchft        3 minutes
    python benchmarks/peers_at_size.py --arch roberta_large         needs 20 GB of memory

Two nodes of one slot, a mini-batch of 32 tokens a rank, as in recovery_at_size.py. A training
process is killed some times under each launcher; then, under ours, a node is killed, one is added,
and one is told that it will be taken away, some times each. Who goes on from checkpoints writes one
every 8 updates, and the kill comes 4 updates after one.

Each run is a line in benchmarks/at_size.jsonl. What is there is not run again: after an
interruption the same command goes on; remove lines, or the file, to measure anew. From all lines
the table in docs/performance.md is made. Seconds:

- u: an update, median.  c (ours): a plain copy of the state, as in recovery_at_size.py.
- a loss: from it to the end of the first update beyond those before; and of the first of these by
  two ranks.
- a node added or left: from the last update before the change to the end of the first after it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faults
import recovery_at_size
import tables
from replay.launchers import LAUNCHERS, Launcher, wait_until
from replay.tables import NAMES, NOT_RUN
from simulation.tables import table

RESULTS = faults.ROOT / "benchmarks" / "at_size.jsonl"
CONTESTANTS = ("ours", "torchft", "torchrun", "walkthrough_2019", "ray_train")
SAVE_EVERY, AFTER_SAVE = 8, 4
CALM = 3
"""Updates of one group of ranks before anything is done to it."""

LIMIT_S = 300.0
OURS = ("--no-save", "--ray-snapshot-updates", "0")
OTHERS = ("--save-interval-updates", SAVE_EVERY, "--keep-interval-updates", 1)
STOCK = ("--ddp-backend", "legacy_ddp", "--no-epoch-checkpoints")
EVENTS = {
    "kill-process": "a training process is killed",
    "kill-node": "a node is killed",
    "add-node": "a node is added: the stall",
    "drain": "a node is left in time: the stall",
}


def main() -> None:
    arguments = parse()
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ.update(RAY_TMPDIR=folder, OMP_NUM_THREADS="1")
        text = Path(folder) / "text"
        for name in arguments.contestants:
            if (arguments.arch, name) in {(r["arch"], r["contestant"]) for r in results}:
                continue
            if not text.exists():
                prepare = faults.ROOT / "examples" / "roberta" / "preprocess.py"
                subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
            print("measuring", arguments.arch, name, flush=True)
            result = {"arch": arguments.arch, "contestant": name}
            result |= measure(Path(folder) / name, text, name, arguments)
            results.append(result)
            print(json.dumps(result), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
    page = tables.put(tables.PAGE.read_text(), "at size", rows(results))
    tables.PAGE.write_text(page)


def measure(folder: Path, text: Path, name: str, arguments: argparse.Namespace) -> dict:
    common = recovery_at_size.OPTIONS[: -len(OURS)]
    assert recovery_at_size.OPTIONS[-len(OURS) :] == OURS
    options = [*common, "--arch", arguments.arch, "--max-update", 1_000_000]
    options += OURS if name == "ours" else OTHERS
    options += () if name in ("ours", "torchft") else STOCK
    launcher = LAUNCHERS[name](folder, text, options, 2)
    bench = Bench(launcher)
    begin = time.time()
    try:
        launcher.begin(("node0", "node1"))
        bench.until(lambda: launcher.lines("done"))
        result = {"start_s": round(launcher.lines("done")[0]["time"] - begin, 1)}
        for number in range(arguments.runs):
            bench.kill_process(f"node{number % 2}")
        if name == "ours":
            bench.change_nodes(arguments.runs)
    except TimeoutError as error:
        result = {"failed": str(error)}
        print(launcher.runs[0].tail(), file=sys.stderr)
    finally:
        launcher.end()
    steps = [step for step in launcher.runs[0].steps() if step["world"] == 2]
    times = recovery_at_size.update_times(steps)
    result["u_s"] = round(statistics.median(times), 2) if times else None
    if name == "ours":
        result["c_s"] = round(recovery_at_size.copy_seconds(launcher.runs[0]), 2)
    return result | {"redone": launcher.runs[0].redone(), "events": bench.events}


class Bench:
    """Changes under a launcher, one after the other, and what each cost."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.events: dict[str, list[dict]] = {}
        self.num_nodes = 2

    def until(self, condition, limit_s: float = LIMIT_S):
        if not wait_until(self.launcher, condition, limit_s):
            raise TimeoutError(f"did not go on in {limit_s:.0f} s")

    def steps(self) -> list[dict]:
        return self.launcher.lines("done")

    def calm(self, world: int) -> None:
        """The newest ranks train, and a checkpoint that others go on from is a while ago."""

        def is_calm() -> bool:
            steps = self.steps()
            newest = [step for step in steps if step["group"] == steps[-1]["group"]]
            updates = sorted({step["update"] for step in newest})
            return (
                steps[-1]["world"] == world
                and len(updates) > CALM
                and updates[-1] > SAVE_EVERY
                and updates[-1] % SAVE_EVERY == AFTER_SAVE
            )

        self.until(is_calm)

    def kill_process(self, node: str) -> None:
        self.calm(2)
        at = time.time()
        assert self.launcher.kill(node)
        self.note("kill-process", at, world=2)

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

        def beyond(step: dict) -> bool:
            return step["time"] > at and step["update"] > reached and step["group"] not in old

        def whole() -> list[dict]:
            return [step for step in self.steps() if beyond(step) and step["world"] == world]

        self.until(whole)
        first = next(step for step in self.steps() if beyond(step))
        last = whole()[0]
        before = max(
            step["time"]
            for step in self.steps()
            if step["time"] < last["time"] and step["group"] != last["group"]
        )
        self.events.setdefault(kind, []).append(
            {
                "recovery_s": round(first["time"] - at, 2),
                "whole_s": round(last["time"] - at, 2),
                "stall_s": round(last["time"] - before, 2),
            }
        )


def rows(results: list[dict]) -> str:
    """A row a model and contestant."""
    told = []
    for result in sorted(results, key=lambda r: (r["arch"], CONTESTANTS.index(r["contestant"]))):
        cells = [cell(result["events"].get(kind, []), kind) for kind in EVENTS]
        cells[0] = cells[0] if "failed" not in result else f"{cells[0]}, then it {result['failed']}"
        u = f"{result['u_s']} s" + (f", {result['c_s']} s" if "c_s" in result else "")
        name = f"{result['arch']}, {NAMES[result['contestant']]}"
        told.append((name, u, f"{result['start_s']} s" if "start_s" in result else "", *cells))
    return table(("", "u, c", "start to first update", *EVENTS.values()), told) if told else NOT_RUN


def cell(events: list[dict], kind: str) -> str:
    """Medians."""
    if not events:
        return ""
    key = "stall_s" if kind in ("add-node", "drain") else "recovery_s"
    values = sorted(event[key] for event in events)
    text = f"{statistics.median(values):.1f} s ({values[0]:.1f} to {values[-1]:.1f})"
    whole = statistics.median(event["whole_s"] for event in events)
    if kind == "kill-process" and whole > statistics.median(values) + 0.05:
        text += f", with both ranks {whole:.1f} s"
    return text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="roberta_base")
    parser.add_argument("--contestants", nargs="+", choices=LAUNCHERS, default=CONTESTANTS)
    parser.add_argument("--runs", type=int, default=3, help="of each kind of change")
    return parser.parse_args()


if __name__ == "__main__":
    main()
