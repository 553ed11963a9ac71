"""What faults cost, here and elsewhere: real faults on real training, on this machine.

    python benchmarks/faults.py                        # everything; about an hour
    python benchmarks/faults.py --only kill-process --contestants ours --runs 1

The contestants take turns, each run on a Ray cluster of its own: a head without room and two
nodes of one CPU, or one node where another is to join. A line per run is added to
benchmarks/results.jsonl, and the tables in docs/performance.md are made again from all of them.
The recorder of the tests runs inside of all contestants alike, and says when which rank completed
which update with which samples.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest  # noqa: E402  sets Ray's environment
import psutil  # noqa: E402
import runs  # noqa: E402
import tables  # noqa: E402

SMALL = (
    *("--arch", "roberta_base", "--encoder-layers", "2", "--encoder-attention-heads", "4"),
    *("--encoder-embed-dim", "128", "--encoder-ffn-embed-dim", "512"),
)
MODEL = (
    *("--cpu", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
    *("--task", "masked_lm", "--criterion", "masked_lm", "--sample-break-mode", "complete"),
    *SMALL,
    *("--tokens-per-sample", "128", "--batch-size", "8", "--num-workers", "0", "--seed", "7"),
    *("--optimizer", "adam", "--lr", "1e-3", "--lr-scheduler", "inverse_sqrt"),
    *("--warmup-updates", "50", "--log-format", "json", "--log-interval", "10"),
    *("--disable-validation", "--no-epoch-checkpoints", "--save-interval-updates", "50"),
)
FAULT_AT = 80
NUM_UPDATES = 120
HANG_LIMIT_S = 10
GIVE_UP_S = 120
"""A contestant that has not gone on so long after the fault will not."""

CONTESTANTS = ("ours", "walkthrough_2019", "ray_train")
IN_PROCESS = {"kill-process": "SIGKILL", "hang": "SIGSTOP"}
FAULTS = (*IN_PROCESS, "kill-node", "add-node")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(*FAULTS, "speed"))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        text = Path(folder) / "text"
        prepare = ROOT / "examples" / "roberta" / "preprocess.py"
        subprocess.run([sys.executable, prepare, "--dest-dir", text], check=True)
        for number in range(arguments.runs):
            for fault in arguments.only or (*FAULTS, "speed"):
                here = Path(folder) / f"{number}_{fault}"
                if fault == "speed":
                    for result in measure_speed(here, text):
                        keep(result)
                    continue
                for contestant in arguments.contestants:
                    keep(measure_fault(here / contestant, text, contestant, fault))
    tables.write()


def keep(result: dict) -> None:
    print(json.dumps(result), flush=True)
    with open(tables.RESULTS, "a") as file:
        file.write(json.dumps(result) + "\n")


@contextlib.contextmanager
def cluster(num_nodes: int = 2):
    """Nodes of one CPU, and a head without."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = conftest.Nodes(Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(num_nodes):
            nodes.add()
        yield nodes
    finally:
        import ray

        ray.shutdown()
        nodes.cluster.shutdown()


def start(folder: Path, text: Path, contestant: str, address: str, *options, faults=None):
    options = ("--fix-batch-size", "16", *options)
    if contestant == "ours":
        options = (*options, "--ray-hang-timeout", str(HANG_LIMIT_S))
        return runs.ray_train(folder, text, MODEL, *options, address=address, faults=faults)
    script = ROOT / "benchmarks" / "contestants" / f"{contestant}.py"
    command = [sys.executable, script, text, *MODEL, "--save-dir", folder / "save"]
    command += ["--user-dir", runs.RECORDER, "--ray-address", address, *options]
    return runs.Run(folder, command, faults)


def measure_fault(folder: Path, text: Path, contestant: str, fault: str) -> dict:
    """One run with one fault; what it cost."""
    result = {"contestant": contestant, "fault": fault}
    faults = []
    if fault in IN_PROCESS:
        faults = [{"rank": 1, "update": FAULT_AT, "where": "begin", "what": IN_PROCESS[fault]}]
    # a joining node is asked for at checkpoints by the 2019 script, and takes its time to start
    num_updates = NUM_UPDATES if fault != "add-node" else 10 * NUM_UPDATES
    begin = time.time()
    with cluster(num_nodes=1 if fault == "add-node" else 2) as nodes:
        begin = time.time()
        options = ("--max-update", str(num_updates))
        run = start(folder, text, contestant, nodes.address, *options, faults=faults)
        try:
            run.until_update(FAULT_AT - 1)
            if fault == "kill-node":
                pid = next(step["pid"] for step in reversed(run.steps()) if step["rank"] == 1)
                nodes.kill(node_of(pid, nodes))
            if fault == "add-node":
                nodes.add()
            if fault in IN_PROCESS:
                fired = run.records / "fired_0"
                run.until(fired.exists)
                at = float(fired.read_text().split()[0])
            else:
                at = time.time()
            run.until(lambda: next_step(run, at, fault), limit_s=GIVE_UP_S)
            run.until_update(run.steps()[-1]["update"] + 5)
        except AssertionError as error:
            print(error, file=sys.stderr)
            result["failed"] = str(error).splitlines()[0]
        finally:
            run.process.terminate()
            with contextlib.suppress(AssertionError):
                run.wait(30)
            end_all(run)
    steps = run.steps()
    result["start_s"] = round(steps[0]["time"] - begin, 2)
    if "failed" not in result:
        step = next_step(run, at, fault)
        if fault == "add-node":
            before = max(s["time"] for s in steps if s["world"] < step["world"])
            result["stall_s"] = round(step["time"] - before, 2)
            result["joined_s"] = round(step["time"] - at, 2)
        else:
            result["recovery_s"] = round(step["time"] - at, 2)
        result["redone"] = run.redone()
    return result


def next_step(run, at: float, fault: str) -> dict | None:
    """The first update beyond all before that was begun after the fault, once it is complete."""
    steps = run.steps()
    if fault == "add-node":
        return next((s for s in steps if s["time"] > at and s["world"] == 2), None)
    reached = max(s["update"] for s in steps if s["time"] <= at)
    groups = {
        line["group"]: line["time"] for line in reversed(run.lines_of("begun"))
    }  # when each generation began its first update
    return next((s for s in steps if s["update"] > reached and groups[s["group"]] > at), None)


def node_of(pid: int, nodes):
    above = {process.pid for process in psutil.Process(pid).parents()}
    return next(node for node in nodes.nodes if nodes.processes(node)[0].pid in above)


def end_all(run) -> None:
    """A contestant that was killed leaves training processes behind."""
    for pid in {line["pid"] for line in run.lines_of("begun")}:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def measure_speed(folder: Path, text: Path) -> list[dict]:
    """Updates a second without faults, in turn: stock fairseq under torchrun, and ours.

    torchrun runs alone on the machine, and beside the Ray nodes that ours needs, idle.
    """
    options = ("--max-update", str(2 * NUM_UPDATES))
    stock = ("--batch-size", "8", *options)
    results = [speed("torchrun", runs.torchrun(folder / "alone", text, MODEL, *stock).finish())]
    with cluster() as nodes:
        beside = runs.torchrun(folder / "beside", text, MODEL, *stock).finish()
        results.append(speed("torchrun beside idle Ray nodes", beside))
        ours = start(folder / "ours", text, "ours", nodes.address, *options)
        ours.until_update(NUM_UPDATES)
        memory = memory_of_slots(ours)
        results.append({**speed("ours", ours.finish()), **memory})
    os.environ["RAY_worker_niceness"] = "0"
    try:
        with cluster() as nodes:
            ours = start(folder / "nice", text, "ours", nodes.address, *options).finish()
            results.append(speed("ours, RAY_worker_niceness=0", ours))
    finally:
        del os.environ["RAY_worker_niceness"]
    return results


def speed(contestant: str, run) -> dict:
    """Of the second half: what begins slowly does not count."""
    ends = [step["time"] for step in run.steps() if step["rank"] == 0][NUM_UPDATES:]
    per_update = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    return {
        "contestant": contestant,
        "fault": "speed",
        "updates_s": round((len(ends) - 1) / (ends[-1] - ends[0]), 3),
        "median_ms": round(per_update * 1e3, 1),
    }


def memory_of_slots(run) -> dict:
    """PSS in MB of one slot: its training process, and all else it takes."""
    training = psutil.Process(run.ranks()[1]["pid"])
    worker = next(p for p in training.parents() if (p.cmdline() or [""])[0].startswith("ray::"))
    slot = [worker, *worker.children(recursive=True)]
    pss = {process.pid: process.memory_full_info().pss / 1e6 for process in slot}
    trained = pss.pop(training.pid)
    return {"training_pss_mb": round(trained), "beside_pss_mb": round(sum(pss.values()))}


if __name__ == "__main__":
    main()
