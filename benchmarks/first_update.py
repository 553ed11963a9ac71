"""How long a start takes: from the command to the end of the first update on all ranks.

    python benchmarks/first_update.py                      # both models, 3 turns; about 6 minutes
    python benchmarks/first_update.py --models small --runs 5
    python benchmarks/first_update.py --before CHECKOUT    # and an older version of ours

Two ranks; the contestants take turns. Ours starts on a Ray cluster that is there, a head without
room and two nodes of one CPU; stock fairseq under torchrun as two nodes' agents that meet at a
store, which is there as well. All run at the same priority (RAY_worker_niceness=0), or whatever
else the machine does would count for ours alone.

Each run is a line in benchmarks/starts.jsonl; from all lines the table in docs/performance.md is
made. `cores_s` are the seconds that the machine's cores were busy meanwhile, with whatever.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faults
import psutil
import recovery_at_size
import runs
import tables
from replay.launchers import Torchrun
from simulation.tables import table

RESULTS = faults.ROOT / "benchmarks" / "starts.jsonl"
ENDLESS = ("--max-update", "1000000")
MODELS = {
    "small": (*faults.MODEL, "--fix-batch-size", "16", *ENDLESS),
    "roberta_base": (*recovery_at_size.OPTIONS, "--arch", "roberta_base", *ENDLESS),
}
NAMES = {
    "ours": "fairseq-ray-train",
    "before": "fairseq-ray-train, before",
    "torchrun": "stock fairseq under torchrun",
}
LIMIT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of an older version")
    arguments = parser.parse_args()
    checkouts = {"ours": faults.ROOT} | ({"before": arguments.before} if arguments.before else {})
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ.update(RAY_TMPDIR=folder, OMP_NUM_THREADS="1", RAY_worker_niceness="0")
        text = Path(folder) / "text"
        prepare = faults.ROOT / "examples" / "roberta" / "preprocess.py"
        subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
        for number in range(arguments.runs):
            for model in arguments.models:
                for who in (*checkouts, "torchrun"):
                    here = Path(folder) / f"{number}_{model}_{who}"
                    begin = on_torchrun if who == "torchrun" else on_ray(checkouts[who])
                    keep({"contestant": who, "model": model, **measure(begin, here, text, model)})
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    tables.PAGE.write_text(tables.put(tables.PAGE.read_text(), "starts", rows(lines)))


def keep(result: dict) -> None:
    print(json.dumps(result), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")


def measure(begin, folder: Path, text: Path, model: str) -> dict:
    with begin(folder, text, list(MODELS[model])) as start:
        busy, at = busy_s(), time.time()
        run = start()
        run.until(lambda: len({step["rank"] for step in run.steps()}) == 2, limit_s=LIMIT_S)
        busy = busy_s() - busy
    first = [step for step in run.steps() if step["update"] == 1]
    assert {2} == {step["world"] for step in first}
    start_s = max(step["time"] for step in first) - at
    return {"start_s": round(start_s, 2), "cores_s": round(busy, 1)}


def busy_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def on_ray(checkout: Path):
    """What begins a run of the version in that checkout, on a cluster that runs it, too."""

    @contextlib.contextmanager
    def begin(folder: Path, text: Path, options: list):
        os.environ["PYTHONPATH"] = str(checkout)  # before the nodes start, whose workers have it
        runs.data.REPOSITORY = checkout
        with faults.cluster() as nodes:
            started = []

            def start():
                run = runs.ray_train(folder, text, options, address=nodes.address)
                started.append(run)
                return run

            yield start
            for run in started:
                run.process.terminate()
                run.wait(60)
                faults.end_all(run)

    return begin


@contextlib.contextmanager
def on_torchrun(folder: Path, text: Path, options: list):
    os.environ["PYTHONPATH"] = str(faults.ROOT)
    runs.data.REPOSITORY = faults.ROOT
    ours = options.index("--ray-snapshot-updates") if "--ray-snapshot-updates" in options else None
    if ours is not None:
        options[ours : ours + 2] = ()
    launcher = Torchrun(folder, text, [*options, "--ddp-backend", "legacy_ddp"], 2)
    launcher.beside()
    launcher.beside = lambda: None

    def start():
        launcher.begin(("node0", "node1"))
        return launcher.runs[0]

    yield start
    launcher.end()


def rows(results: list[dict]) -> str:
    told = []
    for model in MODELS:
        for who, name in NAMES.items():
            mine = [r for r in results if (r["model"], r["contestant"]) == (model, who)]
            if mine:
                times = sorted(result["start_s"] for result in mine)
                spread = f"{times[0]:.1f} to {times[-1]:.1f}, {len(times)} runs"
                cores = statistics.median(result["cores_s"] for result in mine)
                told.append(
                    (
                        f"{model}, {name}",
                        f"{statistics.median(times):.1f} s ({spread})",
                        f"{cores:.0f}",
                    )
                )
    return table(("", "start to the end of the first update", "seconds of cores"), told)


if __name__ == "__main__":
    main()
