"""The training that faults meet, and whether it is still the same afterwards."""

import contextlib
import glob
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import data
import faults
import psutil
import runs

from fairseq_ray_plugin.checkpoints import catalog, table

WIDTH = "256"
"""Of the model: a checkpoint has 22 MB, so that there is time to disturb its writing."""

SAVE_EVERY = 10

MODEL = (
    *(*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation"),
    *("--encoder-embed-dim", WIDTH, "--encoder-ffn-embed-dim", "512"),
    *("--save-interval-updates", str(SAVE_EVERY), "--keep-interval-updates", "2"),
)

MOST_UPDATES = 700
"""Of the undisturbed run; others are ended before."""

LAST = "checkpoint_last.pt"
LIMIT_S = 600
"""What has not happened by then never will."""

KEYS = ("loss", "gnorm", "lr", "wpb", "bsz")


_shared = contextlib.ExitStack()
_nodes: list = []


@contextlib.contextmanager
def cluster() -> Iterator:
    """Two nodes of one CPU, and a head without; the same for one fault after the other."""
    if not _nodes:
        _nodes.append(_shared.enter_context(faults.cluster()))
    try:
        yield _nodes[0]
    except BaseException:
        close_cluster()  # who knows what is left there
        raise


def close_cluster() -> None:
    _nodes.clear()
    _shared.close()


def start(folder: Path, text: Path, address: str, updates: int, *options, pause_s=0.05):
    """`fairseq-ray-train` up to so many updates.

    fairseq's log goes to a file, for whoever prints it may be killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    more = ("--max-update", str(updates), "--log-file", log_of(folder), *options)
    return runs.ray_train(folder, text, MODEL, *more, address=address, pause_s=pause_s)


def log_of(folder: Path) -> Path:
    return folder / "train.log"


def curve(log: Path) -> dict[int, set[tuple]]:
    """Update -> all that was logged for it."""
    found: dict[int, set[tuple]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("{") and '"num_updates"' in line:
            values = json.loads(line)
            if "loss" in values:
                logged = tuple(values[key] for key in KEYS)
                found.setdefault(int(values["num_updates"]), set()).add(logged)
    return found


def compare(run: runs.Run, expected: dict[int, set[tuple]]) -> dict:
    """What the updates of a run were like, beside those of an undisturbed one.

    Raises:
        AssertionError: one was different, or was left out.
    """
    steps = run.steps()
    done = {step["update"] for step in steps}
    last = max(done)
    assert done == set(range(min(done), last + 1)), "updates are missing"
    logged = curve(log_of(run.folder))
    different = [update for update, seen in logged.items() if seen != expected[update]]
    assert not different, f"other losses: {different}"
    return {"updates": last, "compared": len(logged), "redone": run.redone()}


def finish(run: runs.Run) -> None:
    run.records.mkdir(exist_ok=True)
    (run.records / "hurry").touch()
    code = run.wait(LIMIT_S)
    assert code == 0, f"exit code {code}:\n{run.tail()}"


def end(run: runs.Run) -> None:
    """By SIGTERM, after which the last update is saved."""
    run.process.terminate()
    assert run.wait(LIMIT_S) == 143, run.tail()
    assert newest(run.save_dir) == updates(run)


def until(run: runs.Run, condition: Callable):
    return run.until(condition, LIMIT_S)


def until_update(run: runs.Run, update: int) -> None:
    until(run, lambda: updates(run) >= update)


def until_event(run: runs.Run, kind: str, count: int = 1) -> None:
    until(run, lambda: len(run.events(kind)) >= count)


def until_both_train(run: runs.Run, after: int = 0) -> None:
    """In a later generation than that."""
    until(
        run,
        lambda: any(
            event["world_size"] == 2 and event["generation"] > after
            for event in run.events("advanced")
        ),
    )


def updates(run: runs.Run) -> int:
    """Completed so far."""
    return max((step["update"] for step in run.steps()), default=0)


def whole(save_dir: Path) -> dict[str, int]:
    """Name -> updates, of all whole checkpoints."""
    rows = table.rows(catalog.Folder(str(save_dir)))
    return {r.entry.name: r.facts.updates for r in rows if r.damage is None and r.facts}


def newest(save_dir: Path) -> int:
    """The update after which the newest whole checkpoint is."""
    return max(whole(save_dir).values(), default=0)


def states_due(nodes: set[str]) -> set[str]:
    """Files in the nodes' memory that are to be checkpoints, or become such just now."""
    found = [path for node in nodes for path in glob.glob(f"/dev/shm/fairseq_ray_*{node}/*")]
    return {path for path in found if path.endswith((".due", ".tmp"))}


def nodes_of(run: runs.Run) -> set[str]:
    return {rank["node"] for rank in run.ranks()}


def until_saving(run: runs.Run) -> None:
    """A checkpoint that was not under way before is."""
    nodes, end = nodes_of(run), time.monotonic() + LIMIT_S
    before = states_due(nodes)
    while not (now := states_due(nodes)) - before:
        before &= now
        assert time.monotonic() < end, f"nothing is saved:\n{run.tail()}"
        time.sleep(0.001)


def server_of(rank: int) -> psutil.Process:
    """What a rank was forked from."""
    return psutil.Process(rank).parent()


def worker_of(rank: int) -> psutil.Process:
    return server_of(rank).parent()


def writers(run: runs.Run) -> Iterator[psutil.Process]:
    """Processes that write a checkpoint at this moment."""
    ranks = {rank["pid"] for rank in run.ranks()}
    for rank in ranks:
        try:
            yield from (c for c in server_of(rank).children() if c.pid not in ranks)
        except psutil.NoSuchProcess:
            continue
