"""For how long a checkpoint stops training, beside a plain copy of the state and stock fairseq.

    python benchmarks/save_stall.py

RoBERTa base with 121M parameters on one worker and one thread, a checkpoint every 10 updates. The
stall is the time from the end of an update, after which a checkpoint is due, to the end of the
next one, less the median of all others. The copy is made in the same processes, half-way between
two checkpoints: all tensors of the state are cloned. Twice in turn; needs 10 GB of memory, and as
much of the disk.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest  # noqa: E402, F401  sets Ray's environment
import data  # noqa: E402
import runs  # noqa: E402

EVERY = 10
NUM_UPDATES = 41
NUM_TURNS = 2
NUM_WORDS = 45_000
MODEL = (
    *data.without(
        data.MASKED_LM,
        *("--encoder-layers", "--encoder-attention-heads", "--encoder-embed-dim"),
        *("--encoder-ffn-embed-dim", "--tokens-per-sample", "--batch-size"),
    ),
    *("--tokens-per-sample", "16", "--batch-size", "1", "--update-freq", "1"),
    *("--disable-validation", "--max-update", str(NUM_UPDATES)),
    *("--save-interval-updates", str(EVERY), "--keep-interval-updates", "1"),
    *("--user-dir", str(ROOT / "benchmarks" / "contestants" / "plain_copy")),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        text = data.english_text(Path(folder) / "english")
        with open(text / "dict.txt", "a") as file:  # words that the text does not have
            file.writelines(f"unused{n} 0\n" for n in range(NUM_WORDS - 3000))
        for turn in range(NUM_TURNS):
            for contestant in ("ours", "stock"):
                here = Path(folder) / f"{turn}_{contestant}"
                print(json.dumps(measure(here, text, contestant)), flush=True)


def measure(folder: Path, text: Path, contestant: str) -> dict:
    lines = folder / "updates.jsonl"
    os.environ["FAIRSEQ_COPIES"], os.environ["FAIRSEQ_COPY_EVERY"] = str(lines), str(EVERY)
    options = (text, *MODEL, "--save-dir", folder / "save")
    if contestant == "ours":
        command = [runs.BIN / "fairseq-ray-train", *options]
        command += ["--ray-address", "local", "--ray-max-workers", "1"]
        command += ["--ray-snapshot-updates", "0"]  # which stop training, too
    else:
        command = [sys.executable, "-m", "fairseq_ray_plugin", "train", *options]
    run = runs.Run(folder, command)
    assert run.wait(3600) == 0, run.tail()
    seen = [json.loads(line) for line in lines.read_text().splitlines()]
    took = {}
    for before, after in zip(seen, seen[1:], strict=False):
        took[before["update"]] = after["time"] - before.get("resumed", before["time"])
    saves = [seconds for update, seconds in took.items() if update % EVERY == 0]
    plain = statistics.median(s for update, s in took.items() if update % EVERY and update > 5)
    copies = [line["copy_s"] for line in seen if "copy_s" in line]
    size = max(line["bytes"] for line in seen if "bytes" in line)
    for path in (folder / "save").glob("*.pt"):
        path.unlink()
    return {
        "contestant": contestant,
        "state_gb": round(size / 1e9, 2),
        "update_s": round(plain, 2),
        "stall_s": [round(seconds - plain, 2) for seconds in saves],
        "copy_s": [round(seconds, 2) for seconds in copies],
        "stall_of_copy": round((statistics.median(saves) - plain) / statistics.median(copies), 2),
    }


if __name__ == "__main__":
    main()
