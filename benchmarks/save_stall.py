"""For how long a checkpoint stops training, beside a plain copy of the state and stock fairseq.

    python benchmarks/save_stall.py

RoBERTa base with 121M parameters on one thread, a checkpoint every 10 updates: by a worker of
ours, without Ray's daemons, and by stock fairseq. The stall is the time from the end of an
update, after which a checkpoint is due, to the end of the next one, less the median of all
others; by the clock, and by the CPU time of the process that trains, which others on the machine
disturb less. The copy is made in the same processes, half-way between two checkpoints: all
tensors of the state are cloned. Needs 10 GB of memory, and as much of the disk.
"""

import asyncio
import json
import os
import pickle
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data  # noqa: E402
import runs  # noqa: E402

EVERY = 10
NUM_UPDATES = 51
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        text = data.english_text(Path(folder) / "english")
        with open(text / "dict.txt", "a") as file:  # words that the text does not have
            file.writelines(f"unused{n} 0\n" for n in range(NUM_WORDS - 3000))
        for contestant in ("ours", "stock"):
            print(json.dumps(measure(Path(folder) / contestant, text, contestant)), flush=True)


def measure(folder: Path, text: Path, contestant: str) -> dict:
    lines = folder / "updates.jsonl"
    os.environ["FAIRSEQ_COPIES"], os.environ["FAIRSEQ_COPY_EVERY"] = str(lines), str(EVERY)
    how = {
        "ours": (sys.executable, __file__, "ours"),
        "stock": (sys.executable, "-m", "fairseq_ray_plugin", "train"),
    }
    run = runs.Run(folder, [*how[contestant], text, *MODEL, "--save-dir", folder / "save"])
    assert run.wait(3600) == 0, run.tail()
    seen = [json.loads(line) for line in lines.read_text().splitlines()]
    size = max(line.get("bytes", 0) for line in seen)
    return {
        "contestant": contestant,
        "state_gb": round(size / 1e9, 2),
        "wall": figures(seen, "time", "resumed", "copy_s"),
        "cpu": figures(seen, "cpu", "resumed_cpu", "copy_cpu_s"),
    }


def figures(seen: list[dict], time: str, resumed: str, copy: str) -> dict:
    """Seconds, by one clock or the other."""
    took = {
        before["update"]: after[time] - before.get(resumed, before[time])
        for before, after in zip(seen, seen[1:], strict=False)
    }
    update = statistics.median(s for number, s in took.items() if number % EVERY and number > 5)
    stalls = [seconds - update for number, seconds in took.items() if number % EVERY == 0]
    copies = [line[copy] for line in seen if copy in line]
    of_copy = statistics.median(stalls) / statistics.median(copies)
    return {
        "update_s": round(update, 2),
        "stalls_s": [round(seconds, 2) for seconds in stalls],
        "copies_s": [round(seconds, 2) for seconds in copies],
        "stall_of_copy": round(of_copy, 2),
    }


def train_ours(arguments: list[str]) -> None:
    """By a worker, as its only rank."""
    from fairseq_ray_plugin import compat

    compat.apply()
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from fairseq_ray_plugin.assignment import Job, Role
    from fairseq_ray_plugin.protocol import Finished, FromRank, Ready
    from fairseq_ray_plugin.worker.worker import Worker

    class Alone(Worker):
        def get_node_ip(self) -> str:
            return "127.0.0.1"

        def get_node_id(self) -> str:
            return "alone"

    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    job = Job(
        run_id="benchmark of a save",
        cfg=pickle.dumps(cfg),
        groups=None,
        restart_epoch=False,
        snapshot_updates=0,
        threads=1,
        working_dir=os.getcwd(),
        python_path=tuple(sys.path),
        user_dir=cfg.common.user_dir,
        user_dir_zip=None,
        last_checkpoint=os.path.join(cfg.checkpoint.save_dir, "checkpoint_last.pt"),
        environment={},
    )
    role = Role(
        generation=1,
        rank=0,
        world_size=1,
        restore=None,
        from_snapshot=False,
        keeps_snapshots=False,
    )

    async def train() -> None:
        worker = Alone(job)
        await worker.prepare()
        num_heard, is_over = 0, False
        while not is_over:
            messages = await worker.next_messages(num_heard, 60)
            num_heard += len(messages)
            for message in messages:
                print(str(message)[:300], flush=True)
                if isinstance(message, Ready):
                    await worker.start(role, ("127.0.0.1", 0))
                if isinstance(message, FromRank):
                    is_over |= type(message.says).__name__ in ("Finished", "Raised", "Ended")
        await worker.stop()
        assert isinstance(message.says, Finished), message

    asyncio.run(train())


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        train_ours(sys.argv[2:])
    else:
        main()
