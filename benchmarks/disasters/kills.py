"""`kill -9` of each process at random moments of a save, and a run that is told to end in one."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import runs

from disasters import training
from disasters.training import MOST_UPDATES

TIMES = 20
FEW_TIMES = 10
"""Where something has to start anew each time; 100 in all."""

LONGEST_S = 0.4
"""A save takes about that, from the state in memory to the last of the checkpoint's names."""

random.seed(7)


def _while_saving(run: runs.Run, act: Callable[[], None]) -> bool:
    """Do something at a random moment of a save; whether it was still under way."""
    nodes = training.nodes_of(run)
    training.until_saving(run)
    time.sleep(random.uniform(0, LONGEST_S))
    is_under_way = bool(training.states_due(nodes))
    act()
    return is_under_way


def _result(run: runs.Run, expected: dict, kept: int, amid: int, what: str, times=TIMES) -> dict:
    said = f"{what}; {amid} amid the writing"
    return training.compare(run, expected) | {"times": times, "kept": kept, "what": said}


def _many(
    folder: Path,
    text: Path,
    expected: dict,
    kill: Callable,
    goes_on: Callable,
    what: str,
    times: int = TIMES,
) -> dict:
    """On a cluster, where the state is in the memory of others: nothing is done again."""
    with training.cluster() as nodes:
        run = training.start(folder, text, nodes.address, MOST_UPDATES)
        training.until_both_train(run, after=0)
        kept = amid = 0
        for number in range(times):
            generation, redone = run.events("started")[-1]["generation"], run.redone()
            amid += _while_saving(run, lambda: kill(run, nodes))
            goes_on(run, number, generation)
            kept += run.redone() == redone
        training.end(run)
        return _result(run, expected, kept, amid, what, times)


def _both_train(run: runs.Run, number: int, generation: int) -> None:
    training.until_both_train(run, after=generation)


def rank(folder: Path, text: Path, expected: dict) -> dict:
    def kill(run, nodes) -> None:
        psutil.Process(random.choice(run.ranks())["pid"]).kill()

    return _many(folder, text, expected, kill, _both_train, "the other rank's state was used")


def worker(folder: Path, text: Path, expected: dict) -> dict:
    def kill(run, nodes) -> None:
        training.worker_of(random.choice(run.ranks())["pid"]).kill()

    what = "the other worker's state was used, and the slot filled again"
    return _many(folder, text, expected, kill, _both_train, what, FEW_TIMES)


def loop(folder: Path, text: Path, expected: dict) -> dict:
    def kill(run, nodes) -> None:
        (there,) = runs.residences(nodes.address)
        there.kill()

    def goes_on(run, number: int, generation: int) -> None:
        training.until_event(run, "taken over", number + 1)
        training.until_both_train(run, after=generation)

    what = "Ray started it again, and it took the ranks over"
    return _many(folder, text, expected, kill, goes_on, what)


def writer(folder: Path, text: Path, expected: dict) -> dict:
    """The process that makes the file: another one makes it."""
    with training.cluster() as nodes:
        run = training.start(folder, text, nodes.address, MOST_UPDATES)
        training.until_both_train(run, after=0)
        kept = num_killed = 0
        while num_killed < TIMES:
            training.until_saving(run)
            end = time.monotonic() + 2
            while not (there := list(training.writers(run))) and time.monotonic() < end:
                pass
            if not there:
                continue
            time.sleep(random.uniform(0, LONGEST_S / 2))
            alive = [p for p in there if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            if not alive:
                continue
            alive[0].kill()
            num_killed += 1
            update, saved = training.updates(run), len(run.events("checkpoint"))
            training.until(run, lambda: len(run.events("checkpoint")) > saved)  # noqa: B023
            # what was due is there, whole
            kept += training.newest(run.save_dir) >= update // 10 * 10 and not run.redone()
        training.end(run)
        what = "training went on, and another process wrote the checkpoint"
        return _result(run, expected, kept, num_killed, what)


def command(folder: Path, text: Path, expected: dict) -> dict:
    """On a cluster; then the same command again, or `--ray-attach`, in turns."""
    with training.cluster() as nodes:
        run = training.start(folder, text, nodes.address, MOST_UPDATES, pause_s=0.3)
        training.until_both_train(run, after=0)
        kept = amid = 0
        for number in range(TIMES):
            redone = run.redone()
            amid += _while_saving(run, run.process.kill)
            if number % 2:
                run = training.start(folder, text, nodes.address, MOST_UPDATES, pause_s=0.3)
            else:
                attach = ("--ray-attach", run.save_dir, "--ray-address", nodes.address)
                run = runs.Run(folder, [runs.BIN / "fairseq-ray-train", *attach])
            training.until(run, run.curve)
            kept += run.redone() == redone
        training.end(run)
        assert len(run.events("started")) == 1, "training was not disturbed"
        return _result(run, expected, kept, amid, "training was not disturbed")


def local(folder: Path, text: Path, expected: dict) -> dict:
    """Which started a local Ray: everything dies with it, and only files are left."""

    def begin() -> runs.Run:
        return training.start(folder, text, "local", MOST_UPDATES, "--ray-max-workers", "1")

    run, kept, amid = begin(), 0, 0
    training.until_event(run, "started")
    for number in range(FEW_TIMES):
        amid += _while_saving(run, run.process.kill)
        pids = {rank["pid"] for rank in run.ranks()}
        end = time.monotonic() + training.LIMIT_S
        while any(map(psutil.pid_exists, pids)):
            assert time.monotonic() < end, "ranks outlive the command"
            time.sleep(0.05)
        newest, num_steps = training.newest(run.save_dir), len(run.steps())
        run = begin()
        training.until_event(run, "started", number + 2)
        training.until(run, lambda: len(run.steps()) > num_steps)  # noqa: B023
        kept += run.steps()[num_steps]["update"] == newest + 1
    training.end(run)
    what = "the same command went on from the newest whole checkpoint"
    return _result(run, expected, kept, amid, what, FEW_TIMES)


def told_to_end(folder: Path, text: Path, expected: dict) -> dict:
    """SIGTERM to the command during a save; then the same command again."""
    kept = amid = 0
    times = 5
    with training.cluster() as nodes:
        for number in range(times):
            run = training.start(folder, text, nodes.address, MOST_UPDATES)
            training.until_event(run, "started", number + 1)
            amid += _while_saving(run, run.process.terminate)
            assert run.wait(training.LIMIT_S) == 143, run.tail()
            kept += training.newest(run.save_dir) == training.updates(run)
        run = training.start(folder, text, nodes.address, training.updates(run) + 10)
        training.finish(run)
    what = "the last update was saved, and the same command went on from it"
    return _result(run, expected, kept, amid, what, times)
