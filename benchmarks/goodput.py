"""What share of the possible training gets done while nodes come and go: ours, and others.

    python benchmarks/goodput.py                                      all; about an hour and a half
    python benchmarks/goodput.py --only undisturbed                   what all is compared with
    python benchmarks/goodput.py --only trace --contestants ours      5 1/2 minutes
    python benchmarks/goodput.py --only mtbf --mtbf-s 10              all contestants, 6 minutes
    python benchmarks/goodput.py --only mtbf --mtbf-s 600 --contestants ours   10 1/2 minutes

Everybody trains the same small model with the same samples an update, on four nodes of one slot,
two where processes are killed. Each mini-batch takes 50 ms longer, as on a device that computes
while the CPU waits, so that updates scale with the nodes on a machine of two cores.

- trace: a part of Bamboo's p3 trace, faster: nodes come and go without notice.
- mtbf: a training process is killed again and again, as seconds apart on average as is said, beside
  what Young and Daly's formula gives for training from checkpoints.

Each run is a line in benchmarks/goodput.jsonl. What is there is not run again: after an
interruption the same command goes on; remove lines, or the file, to measure anew. From all lines
the tables in docs/performance.md and docs/goodput.svg are made.

Goodput is what was trained (updates that are done again count once), as a share of what stock
fairseq under torchrun trains undisturbed on as many nodes as there were at each moment, from the
first update on. A node counts from when its first process is started.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import faults
from replay import tables
from replay.launchers import LAUNCHERS, wait_until
from replay.measure import rate_of, save_seconds, updates_of
from replay.replay import replay
from replay.schedule import Schedule, of_kills, of_trace

RESULTS = faults.ROOT / "benchmarks" / "goodput.jsonl"
CONTESTANTS = ("ours", "torchft", "torchrun", "ray_train")
MTBF_S = (10.0, 30.0, 100.0, 600.0)
HOURS, SPEED = (2.0, 4.0), 24.0
"""Two hours in which the four places lose four nodes; in all of the trace 3.5 in two hours."""

PACE_S = 0.05
BATCH, PER_UPDATE = 2, 24
SIZES = (1, 2, 3, 4)
SAVE_EVERY = 10
"""Updates, where the cost of a checkpoint is measured."""

NUM_REFERENCE = 1500
KEYS = ("kind", "contestant", "size", "mtbf_s", "speed", "from_h")
"""What tells one line of results from another."""

OPTIONS = [
    *faults.MODEL,
    *("--batch-size", BATCH, "--tokens-per-sample", 32, "--fix-batch-size", PER_UPDATE),
    *("--max-update", 1_000_000, "--keep-interval-updates", 2),
]


class Results:
    """Lines of results by what they are of; on disk as soon as they are there."""

    def __init__(self) -> None:
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        self.of = {key_of(line): line for line in map(json.loads, lines)}

    def make(self, key: dict, measure) -> dict:
        """The line with that key, measured unless it is there."""
        if key_of(key) not in self.of:
            print("measuring", *key.values(), flush=True)
            line = {**key, **measure()}
            self.of[key_of(key)] = line
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            brief = {k: v for k, v in line.items() if k not in ("progress", "losses", "each")}
            print(json.dumps(brief), flush=True)
        return self.of[key_of(key)]


def key_of(line: dict) -> tuple:
    return tuple(line.get(name) for name in KEYS)


def main() -> None:
    arguments = parse()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ.update(RAY_TMPDIR=folder, OMP_NUM_THREADS="1")
        bench = Bench(Path(folder), results)
        only = arguments.only
        if "undisturbed" in only:
            bench.rates(max(SIZES))
            bench.reference()
        if "trace" in only:
            for name in arguments.contestants:
                bench.trace(name, tuple(arguments.hours), arguments.speed)
        if "mtbf" in only:
            for mtbf_s in arguments.mtbf_s:
                for name in arguments.contestants:
                    bench.kills(name, mtbf_s)
    tables.write(list(results.of.values()), faults.ROOT / "docs")


class Bench:
    def __init__(self, folder: Path, results: Results) -> None:
        self.folder, self.results = folder, results
        self.text = folder / "text"
        self.count = 0

    def launcher(self, name: str, size: int, *options: object):
        """In a folder of its own."""
        if not self.text.exists():
            library = Path(sysconfig.get_path("stdlib"))
            prepare = faults.ROOT / "examples" / "roberta" / "preprocess.py"
            sources = sorted(library.glob("*.py"))
            subprocess.run(
                [sys.executable, prepare, "--dest-dir", self.text, "--text", *sources], check=True
            )
        self.count += 1
        folder = self.folder / f"{self.count}_{name}"
        return LAUNCHERS[name](folder, self.text, [*OPTIONS, *options], size)

    def undisturbed(self, size: int) -> dict:
        """Stock fairseq under torchrun: samples a second, and what a checkpoint costs."""

        def measure() -> dict:
            os.environ["FAIRSEQ_PACE"] = str(PACE_S)
            launcher = self.launcher("torchrun", size, "--save-interval-updates", SAVE_EVERY)
            num_updates = 12 * SAVE_EVERY // (5 - size) + 1

            def updates() -> list:
                """Those of the newest group, if it has all nodes: it may have begun with fewer."""
                each = updates_of(launcher.lines("begun"), launcher.lines("done"))
                return [u for u in each if u.world == size and u.group == each[-1].group]

            try:
                launcher.begin(tuple(f"node{n}" for n in range(size)))
                assert wait_until(launcher, lambda: len(updates()) >= num_updates, 300), (
                    launcher.runs[0].tail()
                )
            finally:
                launcher.end()
            return {
                "samples_s": round(rate_of(updates(), SAVE_EVERY), 3),
                "save_s": round(save_seconds(updates(), SAVE_EVERY), 3),
            }

        return self.results.make({"kind": "undisturbed", "size": size}, measure)

    def rates(self, most: int) -> dict[int, float]:
        return {size: self.undisturbed(size)["samples_s"] for size in SIZES[:most]}

    def options(self, name: str, size: int, mtbf_s: float) -> list[object]:
        """Checkpoints as often as Young's formula wants them; ours needs none to go on from."""
        if name == "ours":
            return ["--save-interval-updates", 500]
        costs = self.undisturbed(size)
        update_s = PER_UPDATE / costs["samples_s"]
        period_s = math.sqrt(2 * max(costs["save_s"], 0.01) * mtbf_s)
        return ["--save-interval-updates", max(1, round(period_s / update_s))]

    def trace(self, name: str, hours: tuple[float, float], speed: float) -> dict:
        schedule = of_trace("p3", hours, speed)
        mtbf_s = schedule.length_s / max(1, schedule.losses)
        key = {"kind": "trace", "contestant": name, "speed": speed, "from_h": hours[0]}
        return self.results.make(key, lambda: self.replay(name, schedule, mtbf_s, max(SIZES)))

    def kills(self, name: str, mtbf_s: float) -> dict:
        schedule = of_kills(mtbf_s, max(60.0, mtbf_s), ("node0", "node1"))
        key = {"kind": "mtbf", "contestant": name, "mtbf_s": mtbf_s}
        return self.results.make(key, lambda: self.replay(name, schedule, mtbf_s, 2))

    def replay(self, name: str, schedule: Schedule, mtbf_s: float, most: int) -> dict:
        rates = self.rates(most)
        options = self.options(name, most, mtbf_s)
        os.environ["FAIRSEQ_PACE"] = str(PACE_S)
        launcher = self.launcher(name, most, *options)
        return {"losses_of_nodes": schedule.losses, **replay(launcher, schedule, rates)}

    def reference(self) -> dict:
        """The losses of an undisturbed run, which needs no pace."""

        def measure() -> dict:
            os.environ["FAIRSEQ_PACE"] = "0"
            launcher = self.launcher("torchrun", 2, "--no-save", "--max-update", NUM_REFERENCE)
            try:
                launcher.begin(("node0", "node1"))
                for run in launcher.runs:
                    assert run.wait(400) == 0, run.tail()
            finally:
                launcher.end()
            lines = [line for line in launcher.lines("done") if line["rank"] == 0]
            return {"each": [round(line["loss"], 3) for line in lines]}

        return self.results.make({"kind": "reference"}, measure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("undisturbed", "trace", "mtbf")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--contestants", nargs="+", choices=LAUNCHERS, default=CONTESTANTS)
    parser.add_argument("--mtbf-s", nargs="+", type=float, default=MTBF_S)
    parser.add_argument("--hours", nargs=2, type=float, default=HOURS, help="of the trace")
    parser.add_argument("--speed", type=float, default=SPEED, help="times the trace's own")
    return parser.parse_args()


if __name__ == "__main__":
    main()
