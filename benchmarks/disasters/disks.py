"""A save dir that is full, read-only or stands still; a checkpoint that is damaged; two runs."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from disasters import training
from disasters.training import LAST, SAVE_EVERY

AWAY_UPDATES = 25
"""A disk is away for so many updates, in which two checkpoints are due."""

STILL_S = 150
"""A disk stands still for so long: longer than training waits for it."""

MEGABYTES = 256


def _call(*command: object, check: bool = True) -> bool:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.returncode == 0


@contextlib.contextmanager
def _in_memory(save_dir: Path) -> Iterator[None]:
    save_dir.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", save_dir)
    try:
        yield
    finally:
        _call("umount", "-l", save_dir)


@contextlib.contextmanager
def _on_ext4(save_dir: Path) -> Iterator[None]:
    save_dir.mkdir(parents=True)
    image = save_dir.with_suffix(".img")
    _call("truncate", "-s", f"{MEGABYTES}M", image)
    _call("mkfs.ext4", "-q", image)
    _call("mount", "-o", "loop", image, save_dir)
    try:
        yield
    finally:
        _call("umount", "-l", save_dir)
        image.unlink()


def _unusable_for_a_while(
    folder: Path, text: Path, expected: dict, break_it: Callable, mend_it: Callable
) -> dict:
    """Training goes on without a disk; what is due is written when the disk is there again."""
    with training.cluster() as nodes:
        run = training.start(folder, text, nodes.address, 120, pause_s=0.2)
        training.until_update(run, SAVE_EVERY + 5)
        training.until_event(run, "checkpoint")
        break_it()
        begin = training.updates(run)
        training.until(run, lambda: training.updates(run) >= begin + AWAY_UPDATES)
        saved = len(run.events("checkpoint"))
        mend_it()
        without = training.updates(run) - begin
        training.until(run, lambda: len(run.events("checkpoint")) > saved)
        training.finish(run)
    assert training.newest(run.save_dir) == 120
    said = f"{without} updates without the disk; it was written when there was room again"
    return training.compare(run, expected) | {"times": 1, "what": said}


def full(folder: Path, text: Path, expected: dict) -> dict:
    ballast = folder / "save" / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    with _in_memory(folder / "save"):
        return _unusable_for_a_while(folder, text, expected, fill, ballast.unlink)


def read_only(folder: Path, text: Path, expected: dict) -> dict:
    save_dir = folder / "save"

    def forbid() -> None:  # not while a file there is open for writing
        while not _call("mount", "-o", "remount,ro", save_dir, check=False):
            time.sleep(0.01)

    def allow() -> None:
        _call("mount", "-o", "remount,rw", save_dir)

    with _in_memory(save_dir):
        return _unusable_for_a_while(folder, text, expected, forbid, allow)


def stands_still(folder: Path, text: Path, expected: dict) -> dict:
    """Whoever writes there hangs in the kernel, and cannot be killed."""
    save_dir = folder / "save"
    with _on_ext4(save_dir), training.cluster() as nodes, contextlib.ExitStack() as undo:
        run = training.start(folder, text, nodes.address, 400, pause_s=0.2)
        training.until_event(run, "checkpoint")
        _call("fsfreeze", "-f", save_dir)
        undo.callback(_call, "fsfreeze", "-u", save_dir, check=False)
        frozen, begin = time.monotonic(), training.updates(run)
        training.until(run, lambda: time.monotonic() > frozen + STILL_S)
        without = training.updates(run) - begin
        _call("fsfreeze", "-u", save_dir)
        training.until(run, lambda: training.newest(save_dir) > begin + SAVE_EVERY)
        training.finish(run)
        times = [step["time"] for step in run.steps() if step["rank"] == 0]
        longest = max(b - a for a, b in zip(times, times[1:], strict=False))
        assert training.newest(save_dir) == 400
        result = training.compare(run, expected)
    assert without > 2 * SAVE_EVERY
    said = (
        f"{without} updates in {STILL_S} s; where a third checkpoint was due training waited "
        f"{longest:.0f} s"
    )
    return result | {"times": 1, "what": said}


def _flip(offset: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset(len(content))] ^= 4
        path.write_bytes(content)

    return damage


def _cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: keep(len(content))])

    return damage


def _zero(path: Path) -> None:
    content = bytearray(path.read_bytes())
    begin = len(content) // 2 & ~4095
    content[begin : begin + 4096] = bytes(4096)
    path.write_bytes(content)


DAMAGE = {
    "the first byte": _flip(lambda size: 0),
    "a byte of the pickle": _flip(lambda size: 500),
    "a byte at 1/10": _flip(lambda size: size // 10),
    "a byte at 1/3": _flip(lambda size: size // 3),
    "a byte at 9/10": _flip(lambda size: size * 9 // 10),
    "a byte of the directory": _flip(lambda size: size - 300),
    "the last byte": _flip(lambda size: size - 1),
    "a page of zeros": _zero,
    "cut in the middle": _cut(lambda size: size // 2),
    "emptied": _cut(lambda size: 0),
}


def damage(folder: Path, text: Path, expected: dict) -> dict:
    """Of the newest checkpoint, and the same command again."""
    from_before, warned = 0, 0
    results = []
    with training.cluster() as nodes:
        before = training.start(folder / "before", text, nodes.address, 20, pause_s=0)
        training.finish(before)
        for number, harm in enumerate(DAMAGE.values()):
            here = folder / str(number)
            shutil.copytree(before.save_dir, here / "save")
            (here / "save" / "checkpoint_1_20.pt").unlink()
            harm(here / "save" / LAST)
            run = training.start(here, text, nodes.address, 23, pause_s=0)
            training.finish(run)
            (source,) = {
                int(n) for n in re.findall(r"going on from .*, after update (\d+)", run.output)
            } or {20}
            assert min(training.curve(training.log_of(here))) == source + 1
            from_before += source == 10
            warned += f"{LAST} is damaged" in run.output
            results.append(training.compare(run, expected))
            shutil.rmtree(here)
    assert from_before == warned == len(DAMAGE)
    said = "each was noticed: a warning, and on from the checkpoint before"
    compared = sum(result["compared"] for result in results)
    return {"times": len(DAMAGE), "what": said, "compared": compared, "redone": 0, "updates": 23}


def two_commands(folder: Path, text: Path, expected: dict) -> dict:
    """Into one save dir, on one machine."""
    times = 3
    with training.cluster() as nodes:
        run = training.start(folder, text, nodes.address, training.MOST_UPDATES, pause_s=0.3)
        training.until_update(run, 5)
        for _ in range(times):
            other = training.start(folder, text, "local", training.MOST_UPDATES)
            assert other.wait() == 2 and "is in use by" in other.lines[-1], other.tail()
        training.end(run)
    said = "each other was refused in one line that says whose the save dir is"
    return training.compare(run, expected) | {"times": times, "what": said}
