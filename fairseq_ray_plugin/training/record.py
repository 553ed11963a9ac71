"""One record of a run over all its generations: what training logs is there once, and all of it.

fairseq logs on every rank, but only rank 0 has writers. When that one dies, what it had not written
yet is known to the others: each keeps the last points, they are part of the state, and who goes on
from it logs them again. What was logged of updates that are made again is taken back.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

import torch
from fairseq.logging import meters, progress_bar

from fairseq_ray_plugin.activity import Logged
from fairseq_ray_plugin.compat.modules import patch

KEPT = 300
"""So many of the last points are part of the state: W&B writes by 32 kB, or every 15 s."""

TAIL = 16 * 2**20
"""Bytes at the end of a --log-file in which lines are looked for that are already there."""

INNER, AVERAGES = "train_inner", "train"
"""fairseq's tags of what it logs between two updates, and at the end of an epoch."""


@dataclasses.dataclass(frozen=True)
class Point:
    """What was logged, once."""

    way: str
    """The bar's method: `log`, or `print` at the end of an epoch."""

    tag: str | None
    step: int
    stats: dict[str, Any]
    look: dict[str, Any]
    """Of the bar: the epoch, and where in it."""


class Points:
    """The last points of one rank, and what has to be logged again of those before it."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._kept: collections.deque[Point] = collections.deque(maxlen=KEPT)
        self._again: list[Point] = []
        self._text_is_there = self._is_closed = self._is_written = False
        self.purge_step: int | None = None
        """What has been logged of this update and later ones is taken back."""

    def add(self, point: Point) -> None:
        self._kept.append(point)

    def close(self) -> None:
        """What was logged is where it belongs: writers have been closed."""
        self._is_closed = True

    def state(self, update: int) -> dict[str, Any]:
        """What of this is part of the state after an update."""
        points = [dataclasses.astuple(p) for p in list(self._kept) if p.step <= update]
        return {"points": points, "by": self._rank, "is_closed": self._is_closed}

    def restore(self, state: Mapping[str, Any], update: int, pending: bool) -> None:
        """Training goes on from such a state.

        Args:
            pending: the validation after the update is still to come, and logs what it finds.
        """
        points = [Point(*values) for values in state["points"]]
        # an epoch's averages stay: who logged them, though rank 0 did not, has begun to count anew
        points = [p for p in points if not pending or p.step < update or p.tag in (INNER, AVERAGES)]
        self._again = points
        self._kept.extend(points)
        self._is_written, self._is_closed = bool(state["is_closed"]), False
        self._text_is_there = state["by"] == 0 or self._is_written
        self.purge_step = update if any(p.step == update for p in points) or pending else update + 1

    def has_averages(self, update: int) -> bool:
        """Whether those of the epoch that ended with this update have been logged, or will be."""
        return any(p.tag == AVERAGES and p.step == update for p in self._kept)

    def log_again(self, bar: Any) -> None:
        """What may be missing is logged, once, before anything else is."""
        again, self._again = self._again, []
        last = max([point.step for point in again], default=0)
        while hasattr(bar, "wrapped_bar"):
            is_wandb = isinstance(bar, progress_bar.WandBProgressBarWrapper)
            writes = [name for name in dir(bar) if name.startswith("_log_to_")]
            points = again if is_wandb else [p for p in again if p.step == last]
            if is_wandb:
                points = [] if self._is_written else [p for p in points if p.step >= _wandb_step()]
            for point in points:
                for name in writes:
                    getattr(bar, name)(dict(point.stats), point.tag, point.step)
            bar = bar.wrapped_bar
        if not self._text_is_there:
            for point in again:
                if point.step == last:
                    _say_again(bar, point)


def _wandb_step() -> int:
    """W&B has a run that it resumes up to there."""
    run = getattr(progress_bar.wandb, "run", None)
    return int(getattr(run, "starting_step", 0) or 0)


def _say_again(bar: Any, point: Point) -> None:
    before = {name: getattr(bar, name, None) for name in point.look}
    vars(bar).update(point.look)
    try:
        with aloud():
            getattr(bar, point.way)(dict(point.stats), tag=point.tag, step=point.step)
    finally:
        vars(bar).update(before)


@contextlib.contextmanager
def aloud() -> Iterator[None]:
    """What belongs to the record is said, though a restart says nothing before its first update."""
    disabled = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.disable(disabled)


def keep_record(
    points: Points, on_logged: Callable[[Logged], None], training: Callable[[], str | None]
) -> None:
    """Patch fairseq's progress bars, in this process, so that there is one record.

    Args:
        on_logged: called with the loss and the learning rate between updates.
        training: what identifies the training, over all generations and starts.
    """

    @patch(progress_bar, "progress_bar")
    def make_bar(original: Any, *args: Any, **options: Any) -> Any:
        if options.get("wandb_project") and training():
            # the user's own win
            os.environ.setdefault("WANDB_RUN_ID", str(training())[:16])
            os.environ.setdefault("WANDB_RESUME", "allow")
        log_file = options.pop("log_file", None)
        if log_file is not None:
            log_to(log_file, points.purge_step)
        bar = original(*args, **options)
        inner = bar
        while hasattr(inner, "wrapped_bar"):
            inner = inner.wrapped_bar
        points.log_again(bar)
        for way in ("log", "print"):
            setattr(bar, way, _kept(getattr(bar, way), way, inner, points, on_logged))
        return bar

    if progress_bar.SummaryWriter is not None:

        @patch(progress_bar, "SummaryWriter")
        def make_writer(original: Any, *args: Any, **options: Any) -> Any:
            return original(*args, purge_step=points.purge_step, **options)


def _kept(
    write: Callable[..., Any],
    way: str,
    inner: Any,
    points: Points,
    on_logged: Callable[[Logged], None],
) -> Callable[..., Any]:
    @functools.wraps(write)
    def log(stats: Any, tag: str | None = None, step: int | None = None) -> Any:
        result = write(stats, tag=tag, step=step)
        at = int(stats["num_updates"]) if step is None else int(step)
        there = _plain(stats)
        look = {n: getattr(inner, n) for n in ("epoch", "prefix", "i", "size") if hasattr(inner, n)}
        points.add(Point(way, tag, at, there, look))
        if tag == INNER:
            on_logged(Logged(at, *(_number(there.get(name)) for name in ("loss", "lr", "bsz"))))
        return result

    return log


def _plain(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers alone, as the writers take them."""
    plain: dict[str, Any] = {}
    for key, value in stats.items():
        if isinstance(value, meters.AverageMeter):
            value = value.val
        if torch.is_tensor(value) and value.numel() == 1:
            value = value.item()
        if isinstance(value, Number | str):
            plain[key] = value.item() if hasattr(value, "item") else value
    return plain


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Number) else None  # type: ignore[arg-type]


# --log-file

_NUMBER = re.compile(r"-?\d[\d.]*(e[-+]?\d+)?|\bnan\b|\binf\b|NaN|Infinity")
_STEP = re.compile(r'num_updates"?[:=\s]+"?(\d+)')


def log_to(path: str, purge_step: int | None) -> None:
    """Lines go to the file from now on, once; stock adds it again for each bar."""
    logger = progress_bar.logger
    target = os.path.abspath(path)
    if any(getattr(handler, "baseFilename", None) == target for handler in logger.handlers):
        return
    handler = logging.FileHandler(filename=path)
    if purge_step is not None:
        handler.addFilter(_NotYet(path, purge_step))
    logger.addHandler(handler)


class _NotYet(logging.Filter):
    """Lines of updates that are made again are in the file once: the same update, the same line."""

    def __init__(self, path: str, first: int) -> None:
        super().__init__()
        self._there = set(_lines_of(_tail(path), first))

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(line in self._there for line in _lines_of([record.getMessage()], 0))


def _tail(path: str) -> Iterable[str]:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _lines_of(lines: Iterable[str], first: int) -> Iterable[tuple[int, str]]:
    """Each update's lines, from one update on: what they look like without their numbers."""
    for line in lines:
        found = _STEP.search(line)
        if found is not None and int(found[1]) >= first:
            yield int(found[1]), " ".join(_NUMBER.sub("#", line).split())
