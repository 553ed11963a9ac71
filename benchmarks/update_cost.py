"""What an update costs beside stock fairseq: positions, seeds, hooks, reports and snapshots.

    python benchmarks/update_cost.py

The same training twice, by fairseq's own `main` and by a worker's `train_rank`, on one core and
in turns, an update of the one and an update of the other: noise meets both alike. What is left
differs from process to process, so there are several pairs.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data  # noqa: E402

NUM_UPDATES = 200
WARM_UP = 30
NUM_PAIRS = 10
OPTIONS = (
    *("--batch-size", "4", "--disable-validation", "--no-save", "--max-update", str(NUM_UPDATES)),
    # two mini-batches an update, as both deal them
    *("--update-freq", "2"),
)


def main() -> None:
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        text = data.english_text(Path(folder) / "english")
        for number in range(NUM_PAIRS):
            stock, ours = train_pair(text, Path(folder) / str(number))
            before = statistics.median(stock)
            costs.append(statistics.median(b - a for a, b in zip(stock, ours, strict=True)))
            print(f"stock {before * 1e3:.1f} ms an update, ours {costs[-1] * 1e6:+.0f} us")
    mean, error = statistics.mean(costs), statistics.stdev(costs) / NUM_PAIRS**0.5
    print(f"ours: {mean * 1e6:+.0f} us an update, standard error {error * 1e6:.0f} us")


def train_pair(text: Path, folder: Path) -> list[list[float]]:
    """CPU seconds of each update, of the stock training and of ours."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    turns = {"stock": context.Semaphore(1), "ours": context.Semaphore(0)}
    results = [folder / f"{kind}.json" for kind in turns]
    trainings = [
        context.Process(target=train, args=(kind, turns, text, result))
        for kind, result in zip(turns, results, strict=True)
    ]
    for training in trainings:
        training.start()
    for training in trainings:
        training.join()
    return [json.loads(result.read_text()) for result in results]


def train(kind: str, turns: dict, text: Path, result: Path) -> None:
    """Train in turns with the other one; `result` gets the times of each update."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    from fairseq_ray_plugin import compat

    compat.apply()
    import fairseq_cli.train
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    save_dir = str(result.parent / kind)
    arguments = [str(text), *data.MASKED_LM, *OPTIONS, "--save-dir", save_dir]
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), arguments)
    )
    (other,) = (turn for name, turn in turns.items() if name != kind)
    times: list[float] = []
    begin = 0.0
    train_step = Trainer.train_step

    def train_step_in_turn(trainer, *args, **kwargs):
        nonlocal begin
        done = train_step(trainer, *args, **kwargs)
        times.append(time.process_time() - begin)
        other.release()
        if len(times) == NUM_UPDATES:
            result.write_text(json.dumps(times[WARM_UP:]))
            os._exit(0)
        if not turns[kind].acquire(timeout=60):
            raise TimeoutError("the other training has stopped")
        begin = time.process_time()
        return done

    Trainer.train_step = train_step_in_turn
    turns[kind].acquire(timeout=60)
    if kind == "stock":
        fairseq_cli.train.main(cfg)
    else:
        train_as_worker(cfg, result.parent)


def train_as_worker(cfg, folder: Path) -> None:
    """As a worker's only rank, with a fixed batch."""
    from fairseq_ray_plugin.assignment import Assignment
    from fairseq_ray_plugin.training.inherited import NotInherited
    from fairseq_ray_plugin.worker.rank import train_rank

    link, end = multiprocessing.Pipe()
    threading.Thread(target=listen, args=(link,), daemon=True).start()
    assignment = Assignment(
        generation=1,
        rank=0,
        world_size=1,
        master=("", 0),
        restore=None,
        keeps_snapshots=True,
        groups=(2,),
        restart_epoch=False,
        threads=1,
        user_dir=None,
        snapshot_folders=(str(folder),),
        snapshot_updates=None,
    )
    train_rank(cfg, NotInherited("as stock does"), assignment, end, None)


def listen(link) -> None:
    """What the rank says goes nowhere, as long as it does not fail."""
    while True:
        kind, _, text, _ = link.recv()
        if kind in ("raised", "unsaved"):
            print(text, file=sys.stderr)
            os._exit(1)


if __name__ == "__main__":
    main()
