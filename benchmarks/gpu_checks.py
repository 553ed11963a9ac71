"""What only a GPU can show: one command on a machine with one GPU, without a network.

    python benchmarks/gpu_checks.py                        # all; 20 to 30 minutes allowed for
    python benchmarks/gpu_checks.py --only watchdog exact --out checks.json

Each check is a process of its own, which may be ended by what it looks at, and has a limit. Without
a GPU those that need one are skipped, by name. The JSON has the machine, and of each check whether
it holds, its figures or what went wrong; the table is what of it fits a line. Two ranks on one GPU
are refused by NCCL, so where two are needed they speak gloo.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests"),
    str(ROOT / "tests" / "training"),
    str(ROOT / "benchmarks"),
]

from fairseq_ray_plugin import compat  # noqa: E402

compat.apply()

LIMIT_S = 600


def main() -> None:
    from gpu import cuda, training

    checks = {**cuda.CHECKS, **training.CHECKS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=checks, default=[*checks])
    parser.add_argument("--out", default="gpu_checks.json", help="the JSON file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, *more = arguments.child
        print(json.dumps({**checks, "machine": machine}[name](*more)), flush=True)
        os._exit(0)  # a thread may be stuck in CUDA
    # here no context of CUDA is made: it would take memory that checks count
    report = {"machine": run_child("machine"), "checks": {}}
    has_gpu = report["machine"]["gpu"] is not None
    for name in arguments.only:
        needs_gpu = name not in training.ALSO_ON_CPU
        report["checks"][name] = result = run(name, checks[name], has_gpu or not needs_gpu)
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n")
        print(row(name, result), flush=True)


def machine() -> dict:
    """What the figures are of."""
    import ray
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name(0) if has_gpu else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_gpu else None,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def run(name: str, check, can_run: bool) -> dict:
    what = " ".join(check.__doc__.split())
    if not can_run:
        return {"what": what, "status": "skipped", "why": "there is no GPU here"}
    begin = time.monotonic()
    try:
        figures = {"status": "ok", "figures": run_child(name)}
    except RuntimeError as error:
        figures = {"status": "failed", "why": str(error)}
    return {"what": what, "took_s": round(time.monotonic() - begin, 1), **figures}


def run_child(name: str, *arguments: str) -> dict:
    """What a check returns, in a process of its own.

    Raises:
        RuntimeError: it fails, or takes too long; with the end of what it said.
    """
    command = [sys.executable, __file__, "--child", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {LIMIT_S} s") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-9000:]
        raise RuntimeError(f"exit code {done.returncode}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(name: str, result: dict) -> str:
    """A check's line in the table."""
    figures = result.get("figures") or result.get("why", "").strip().splitlines()[-1:]
    text = json.dumps(figures) if isinstance(figures, dict) else "".join(figures)
    return f"| {name} | {result['status']} | {text[:200]} |"


if __name__ == "__main__":
    main()
