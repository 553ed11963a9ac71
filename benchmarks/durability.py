"""What is left of a run when its disk, its processes or its cluster's head fail: real faults.

    python benchmarks/durability.py                    all (an hour, as root: disks are mounted)
    python benchmarks/durability.py --only rank full   these alone

After each fault the losses of all updates are compared with those of a run that nothing happened
to (its log is kept with --undisturbed FILE, and not made again). A line a row is added to
benchmarks/durability.jsonl, and the table in docs/durability.md is made again from all of them, of
each row the newest line.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import data  # noqa: E402
import faults  # noqa: E402
from disasters import disks, heads, kills, table, training  # noqa: E402

ROWS = {
    "full": disks.full,
    "read-only": disks.read_only,
    "stands still": disks.stands_still,
    "damage": disks.damage,
    "writer": kills.writer,
    "rank": kills.rank,
    "worker": kills.worker,
    "loop": kills.loop,
    "local": kills.local,
    "command": kills.command,
    "told to end": kills.told_to_end,
    "two commands": disks.two_commands,
    "head": heads.with_storage,
    "head's machine": heads.machine_with_storage,
    "head without storage": heads.without_storage,
    "head's machine without storage": heads.machine_without_storage,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--undisturbed", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        here = Path(folder)
        text = data.english_text(here / "english")
        log = arguments.undisturbed or here / "undisturbed.log"
        if not log.exists():
            shutil.copyfile(undisturbed(here / "undisturbed", text), log)
        expected = training.curve(log)
        failed = []
        for name in arguments.only:
            if name.startswith(("head", "local")):  # which have a cluster of their own
                training.close_cluster()
            begin = time.monotonic()
            try:
                result = ROWS[name](here / name.replace(" ", "_"), text, expected)
            except Exception:
                failed.append(name)
                print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
                continue
            result |= {"row": name, "seconds": round(time.monotonic() - begin)}
            print(json.dumps(result), flush=True)
            with table.RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            shutil.rmtree(here / name.replace(" ", "_"))
        training.close_cluster()
    table.write()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def undisturbed(folder: Path, text: Path) -> Path:
    """The log of a run to which nothing happens."""
    with faults.cluster() as nodes:
        run = training.start(folder, text, nodes.address, training.MOST_UPDATES, pause_s=0)
        training.finish(run)
    assert run.redone() == 0 and len(run.events("started")) == 1
    return training.log_of(folder)


if __name__ == "__main__":
    main()
