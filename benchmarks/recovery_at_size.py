"""What a killed process costs at the size of a real model, and where the time goes.

    python benchmarks/recovery_at_size.py                       # RoBERTa base, 5 kills
    python benchmarks/recovery_at_size.py --arch roberta_large --runs 3

One run on a Ray cluster of a head without room and two nodes of one CPU, with fairseq's defaults
where they matter (loader processes, back end). A rank is killed again and again, every eighth
update. Printed are, as JSON: u, the median update; c, a plain copy of the state (all tensors, one
thread, memory that is new); the seconds from each kill to the end of the first update beyond those
before it; and the steps of each, from the run's own journal.
"""

import argparse
import contextlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faults
import runs
import torch

FIRST, EVERY = 8, 8
"""Updates at which a rank is killed; the ones between tell how long an update takes."""

LIMIT_S = 900
"""For all of a run."""

ON_CPU = ("--cpu", "--distributed-backend", "gloo", "--tokens-per-sample", "32")
TRAINING = (
    *("--task", "masked_lm", "--criterion", "masked_lm", "--sample-break-mode", "complete"),
    *("--batch-size", "1", "--seed", "7", "--fix-batch-size", "2"),
    *("--optimizer", "adam", "--lr", "1e-4", "--lr-scheduler", "inverse_sqrt"),
    *("--warmup-updates", "50", "--log-format", "json", "--log-interval", "1"),
    "--disable-validation",
)
NO_SAVE = ("--no-save", "--ray-snapshot-updates", "0")
OPTIONS = (*ON_CPU, *TRAINING, *NO_SAVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="roberta_base")
    parser.add_argument("--runs", type=int, default=5, help="kills in one run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        text = Path(folder) / "text"
        prepare = faults.ROOT / "examples" / "roberta" / "preprocess.py"
        subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
        print(json.dumps(measure(Path(folder) / "run", text, arguments), indent=1))


def measure(folder: Path, text: Path, arguments) -> dict:
    kills = [FIRST + EVERY * number for number in range(arguments.runs)]
    # not the same one, or its node would be left out in the end
    planned = [
        {"rank": (number + 1) % 2, "update": at, "where": "begin", "what": "SIGKILL"}
        for number, at in enumerate(kills)
    ]
    with faults.cluster() as nodes:
        begin = time.time()
        run = runs.ray_train(
            folder,
            text,
            ["--arch", arguments.arch],
            *(*OPTIONS, "--max-update", str(kills[-1] + EVERY)),
            address=nodes.address,
            faults=planned,
        )
        try:
            run.until(lambda: reached(run, kills[-1] + 3), limit_s=LIMIT_S)
            cpu_s = cpu_seconds(run)
        finally:
            run.process.terminate()
            with contextlib.suppress(AssertionError):
                run.wait(60)
            faults.end_all(run)
        steps = run.steps()
        fired = [
            float((run.records / f"fired_{n}").read_text().split()[0]) for n in range(len(kills))
        ]
        return {
            "arch": arguments.arch,
            "start_s": round(steps[0]["time"] - begin, 2),
            "u_s": round(statistics.median(update_times(steps)), 3),
            "c_s": round(copy_seconds(num_parameters(run)), 3),
            "cpu_s_of_last_ranks": cpu_s,
            "recovery_s": [
                round(faults.next_step(run, at, "kill-process")["time"] - at, 2) for at in fired
            ],
            "steps": medians([line["steps"] for line in run.events("advanced")[1:]]),
            "first": run.events("advanced")[0]["steps"],
        }


def reached(run, update: int) -> bool:
    return any(step["update"] >= update for step in run.steps())


def update_times(steps: list[dict]) -> list[float]:
    """Rank 0's, but for the first two of a generation."""
    ends: dict[str, list[float]] = {}
    for step in steps:
        if step["rank"] == 0:
            ends.setdefault(step["group"], []).append(step["time"])
    return [b - a for times in ends.values() for a, b in zip(times[1:], times[2:], strict=False)]


def num_parameters(run) -> int:
    line = next(line for line in run.lines if "num. shared model params" in line)
    return int(line.split("params: ")[1].split(" ")[0].replace(",", ""))


def copy_seconds(num_params: int) -> float:
    """A plain copy of as many bytes as the state has: model and Adam's two averages."""
    state = [torch.ones(num_params // 100) for _ in range(300)]
    torch.set_num_threads(1)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        with mmap.mmap(-1, sum(tensor.nbytes for tensor in state)) as pages:
            to = torch.frombuffer(pages, dtype=torch.float32).split(num_params // 100)
            for tensor, copy in zip(state, to, strict=True):
                copy.copy_(tensor)
            times.append(time.perf_counter() - begin)
            del to, copy
    return statistics.median(times)


def cpu_seconds(run) -> list[float]:
    """CPU seconds, user and system, of the newest ranks so far."""
    import psutil

    times = [psutil.Process(rank["pid"]).cpu_times() for rank in run.ranks()]
    return [round(value, 1) for t in times for value in (t.user, t.system)]


def medians(each: list[dict]) -> dict:
    return {
        name: round(statistics.median(steps.get(name, 0.0) for steps in each), 3)
        for name in each[0]
    }


if __name__ == "__main__":
    main()
