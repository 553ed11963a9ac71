"""`make roberta`: a small RoBERTa pre-trains on two workers of this machine, loses one, goes on.

The commands are those of a real run: preprocess.py and train_small.sh. What this adds is the
failure, and an account of what it cost. Everything is written under build/roberta.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import account

HERE = Path(__file__).resolve().parent
WORK_DIR = HERE.parent.parent / "build" / "roberta"
DATA_DIR = WORK_DIR / "data"
SAVE_DIR = WORK_DIR / "checkpoints"
LOG_FILE = WORK_DIR / "train.log"
JOURNAL = SAVE_DIR / "elastic.jsonl"

KILL_AFTER_UPDATE = 75
TIMEOUT_S = 20 * 60
POLL_S = 0.1
SHOW_EVERY = 10


def main() -> int:
    # The commands are in the bin folder of the Python that runs this, activated or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    print("== The data", flush=True)
    done = subprocess.run(
        [sys.executable, str(HERE / "preprocess.py"), "--dest-dir", str(DATA_DIR)]
    )
    if done.returncode != 0:
        return done.returncode
    # A run that is there already would be continued.
    shutil.rmtree(SAVE_DIR, ignore_errors=True)

    print(f"\n== Training; the whole log is in {LOG_FILE}", flush=True)
    log = TrainingLog()
    started = time.time()
    environment = os.environ | {"DATA_DIR": str(DATA_DIR), "SAVE_DIR": str(SAVE_DIR)}
    try:
        training = subprocess.Popen(
            ["bash", str(HERE / "train_small.sh"), *sys.argv[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=log.follow, args=(training.stdout,), daemon=True)
        reader.start()
        killed_at = _kill_one_when_under_way(training, log)
        training.wait(timeout=max(1, started + TIMEOUT_S - time.time()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired) as error:
        _stop(training)
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "took too long"
        print(f"demo.py: {reason}, see {LOG_FILE}", file=sys.stderr)
        return 1
    # Whoever inherited the pipe may hold it for longer than the command lives.
    reader.join(timeout=10)

    result = account.Account(
        read_journal(), log.losses, killed_at, training.returncode, time.time() - started
    )
    print(f"\n== What happened\n{result}", flush=True)
    return 1 if result.problems() else 0


def read_journal() -> list[dict]:
    """The run's events so far, without a last line that is being written."""
    try:
        lines = JOURNAL.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _kill_one_when_under_way(training: subprocess.Popen, log: "TrainingLog") -> float | None:
    """Returns when the training process of the last rank was killed; None if none could be."""
    deadline = time.time() + TIMEOUT_S
    while training.poll() is None and time.time() < deadline:
        generations = [event for event in read_journal() if event["kind"] == "started"]
        if generations and log.last_update() >= KILL_AFTER_UPDATE:
            victim = max(generations[-1]["ranks"], key=lambda rank: rank["rank"])
            killed_at = time.time()
            try:
                os.kill(victim["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return None
            print(f"\n>> kill -9 {victim['pid']}, rank {victim['rank']}\n", flush=True)
            return killed_at
        time.sleep(POLL_S)
    return None


def _stop(training: subprocess.Popen) -> None:
    training.terminate()
    try:
        training.wait(timeout=30)
    except subprocess.TimeoutExpired:
        training.kill()


class TrainingLog:
    """Writes the command's output to a file, shows what is worth seeing, keeps the losses."""

    _UPDATE = re.compile(r"\bloss=([0-9.]+).*\bnum_updates=(\d+)")

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        """Every (update, loss) in the order of logging: an update done twice is there twice."""

    def last_update(self) -> int:
        return self.losses[-1][0] if self.losses else 0

    def follow(self, lines) -> None:
        with open(LOG_FILE, "w") as file:
            for line in lines:
                file.write(line)
                file.flush()
                self._take(line)

    def _take(self, line: str) -> None:
        if found := self._UPDATE.search(line):
            loss, update = float(found[1]), int(found[2])
            self.losses.append((update, loss))
            if update % SHOW_EVERY == 0 or update == 1:
                print(f"update {update:4}  loss {loss:6.3f}", flush=True)
        elif _is_worth_seeing(line):
            print(line, end="", flush=True)


def _is_worth_seeing(line: str) -> bool:
    """What fairseq_ray_plugin says, validation, and whatever is not a mere INFO of fairseq's."""
    if " | INFO | " in line:
        return "| fairseq_ray_plugin" in line or "| valid |" in line
    # The model and the sources of warnings are indented; the configuration is one huge line.
    return len(line) < 400 and "Warning: " not in line and not line.startswith((" ", ")"))


if __name__ == "__main__":
    sys.exit(main())
