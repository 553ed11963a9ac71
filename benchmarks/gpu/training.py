"""Real `fairseq-ray-train` on the GPU of this machine, by itself and with kills."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import data
import peers_at_size
import recovery_at_size
import runs
import torch

ROOT = Path(__file__).resolve().parents[2]
HAS_GPU = torch.cuda.is_available()
LIMIT_S = 400
"""For one run."""

ON = () if HAS_GPU else ("--cpu", "--distributed-backend", "gloo")
PRECISION = ("--fp16", "--fp16-init-scale", "4") if HAS_GPU else ()
TRAINING = (
    *("--task", "masked_lm", "--criterion", "masked_lm", "--sample-break-mode", "complete"),
    *("--optimizer", "adam", "--lr", "1e-4", "--lr-scheduler", "inverse_sqrt", "--seed", "7"),
    *("--warmup-updates", "50", "--log-format", "json", "--log-interval", "1"),
    *("--disable-validation", "--no-save", "--num-workers", "1"),
)
# one rank has no peer that holds its state: what goes on is the snapshot of the update before
SNAPSHOTS = ("--ray-snapshot-updates", "5")
SMALL = (
    *("--arch", "roberta_base", "--encoder-layers", "2", "--encoder-attention-heads", "2"),
    *("--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--tokens-per-sample", "64", "--batch-size", "8", "--fix-batch-size", "8"),
)
LARGE = ("--tokens-per-sample", "512", "--batch-size", "8", "--fix-batch-size", "8")
ARCH = "roberta_base" if HAS_GPU else "small"
MODEL = ("--arch", "roberta_base", *LARGE) if HAS_GPU else SMALL
KILLS = (11, 21)
"""Updates under way when the rank is killed: a node that fails a third time is left out."""

NUM_UPDATES = 30


def text(folder: Path) -> Path:
    """Python's own manual, binarized: no network is needed."""
    prepare = ROOT / "examples" / "roberta" / "preprocess.py"
    subprocess.run([sys.executable, prepare, "--dest-dir", folder], check=True)
    return folder


def train(model: tuple[str, ...], updates: int, *options: str, kills=(), user_dir=None) -> dict:
    """A run of one worker, with a rank killed at each of the updates `kills`."""
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = name
        ours = ["--ray-max-workers", "1", *(SNAPSHOTS if kills else ())]
        ours += ["--user-dir", user_dir] if user_dir else []
        run = runs.ray_train(
            folder / "run",
            text(folder / "text"),
            [*model, *ON, *TRAINING],
            *("--max-update", str(updates), *options, *ours),
            faults=[
                {"rank": 0, "update": at, "where": "all_reduce", "what": "SIGKILL"} for at in kills
            ],
        )
        try:
            run.wait(LIMIT_S)
        finally:
            if run.process.poll() is None:
                run.process.kill()
        return figures(run, updates, kills)


def figures(run, updates: int, kills) -> dict:
    steps = run.steps()
    assert steps and steps[-1]["update"] == updates, run.tail()
    recovery = []
    for number in range(len(kills)):
        at = float((run.records / f"fired_{number}").read_text().split()[0])
        recovery.append(round(next(s["time"] for s in steps if s["time"] > at) - at, 2))
    advanced = [line["steps"] for line in run.events("advanced")]
    return {
        "updates": len({step["update"] for step in steps}),
        "redone": run.redone(),
        "update_s": round(statistics.median(recovery_at_size.update_times(steps)), 4),
        "recovery_s": recovery,
        "first_start_steps_s": advanced[0],
        "restart_steps_s": recovery_at_size.medians(advanced[1:]) if kills else {},
        "losses": run.losses(),
        "out_of_memory": len(run.events("out of memory")),
        "said_of_interpreters": run.output.count("no forked process could use"),
    }


def run_with_kills() -> dict:
    """11: RoBERTa base in fp16 with kills (a small model on CPUs): nothing is redone."""
    result = train(MODEL, NUM_UPDATES, *PRECISION, kills=KILLS)
    assert (result["redone"], result["out_of_memory"]) == (0, 0), result
    assert result["said_of_interpreters"] == 0, result
    return result


def recovery(arch: str) -> dict:
    return train(("--arch", arch, *LARGE), NUM_UPDATES, *PRECISION, kills=KILLS)


def recovery_base() -> dict:
    """8: what a killed rank of RoBERTa base costs, by steps."""
    return recovery("roberta_base")


def recovery_large() -> dict:
    """8: what a killed rank of RoBERTa large costs, by steps."""
    return recovery("roberta_large")


def speed() -> dict:
    """14: RoBERTa base in fp16 by stock fairseq, and by ours: seconds an update, and losses."""
    num_updates = 100
    model = MODEL[: MODEL.index("--fix-batch-size")]  # with it dropout's noise is ours
    ours = train(model, num_updates, *PRECISION)
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        options = [*model, *ON, *TRAINING, *PRECISION, "--max-update", str(num_updates)]
        command = [sys.executable, runs.TESTS / "stock.py", text(folder / "text"), *options]
        command += ["--save-dir", folder / "save", "--user-dir", runs.RECORDER]
        stock = runs.Run(folder / "run", command)
        stock.wait(LIMIT_S)
        assert stock.process.returncode == 0, stock.tail()
        update_s = statistics.median(recovery_at_size.update_times(stock.steps()))
        pairs = [*zip(stock.losses(), ours["losses"], strict=True)]
        return {
            "update_s": {"stock": round(update_s, 4), "ours": ours["update_s"]},
            "most_apart": max(abs(a - b) for a, b in pairs),
            "same_until": next((n for n, (a, b) in enumerate(pairs) if a != b), num_updates),
            "last_losses": pairs[-1],
        }


def changes_base(num_runs: str = "2") -> dict:
    """8: RoBERTa base on two nodes that share the GPU: lost, grown, drained, put by, in seconds."""
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ.update(RAY_TMPDIR=name, CUDA_VISIBLE_DEVICES="0", OMP_NUM_THREADS="4")
        made = text(folder / "text")
        result = peers_at_size.measure(
            folder / "run", made, ARCH, "ours", int(num_runs), gpu=HAS_GPU
        )
        result |= peers_at_size.put_by(folder / "put_by", made, ARCH, gpu=HAS_GPU)
    assert "failed" not in result and result["redone"] == 0, result
    return result


def bf16() -> dict:
    """9: --bf16 trains."""
    return train(SMALL, 10, "--bf16")


def starts_cuda_early() -> dict:
    """7: a --user-dir that touches CUDA on import trains, each rank in a new interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "early"
        package.mkdir()
        code = f"import sys; sys.path.append({str(runs.TESTS)!r})\nimport recorder, torch\n"
        (package / "__init__.py").write_text(code + "torch.zeros(1).cuda()\n")
        result = train(SMALL, 20, kills=[11], user_dir=package)
    assert result["said_of_interpreters"] == 1, result
    return result


def exact() -> dict:
    """10: the tests of states that return bit for bit, on this device."""
    tests = ("tests/training/test_exact.py", "tests/training/test_to_host.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-W", "ignore", "--durations", "1"]
        + ["--tb", "short", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=data.environment(),
    )
    last = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, done.stdout[-9000:]
    return {"pytest": "".join(last)}


CHECKS = {
    check.__name__: check
    for check in (exact, bf16, starts_cuda_early, run_with_kills)
    + (recovery_base, recovery_large, changes_base, speed)
}

ALSO_ON_CPU = ("exact", "bf16", "run_with_kills", "changes_base", "speed")
