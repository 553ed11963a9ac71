"""A run as it is now, for those who watch it: what its journal has so far, and this moment."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from fairseq_ray_plugin.accounting.beat import Beat
from fairseq_ray_plugin.accounting.reader import Reader
from fairseq_ray_plugin.accounting.spent import Spent, goodput

UNTOLD = ("slots", "beginning", "progress", "stopping", "started")
"""Kinds of events that are no news: what they begin is told when it is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Those that this run wrote."""

    num_written: int = 0
    num_failures: int = 0
    """Times that one could not be written, or a state could not be put by."""

    last_at: float | None = None
    """When the last one was written; seconds since 1970."""

    last_s: float | None = None
    """What that took; None: training waited for it, or it is not known."""

    last_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """A run as it is now."""

    beat: Beat
    spent: Mapping[Spent, float]
    """Seconds of slots so far; in all wall clock times the most slots that there were at once."""

    stops: Mapping[str, int]
    """Cause in a word -> how often a generation was stopped by it."""

    checkpoints: Checkpoints
    last_event: tuple[float, str] | None
    """When, and what, for people."""

    @property
    def goodput(self) -> float:
        return goodput(self.spent)


class Follower:
    """Reads a journal as it is written."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._latest = 0.0
        self._stops: collections.Counter[str] = collections.Counter()
        self._checkpoints = Checkpoints()
        self._last_event: tuple[float, str] | None = None

    def hear(self, line: Mapping[str, Any]) -> None:
        """An event, as the journal has it."""
        kind, there = line["kind"], self._checkpoints
        self._latest = max(self._latest, line["time"])
        self._reader.hear({**line, "time": self._latest, "run": ""})
        cause = (line.get("cause") or "").partition("\n")[0]
        if kind == "stopped":
            self._stops[cause.partition(":")[0] or "?"] += 1
        elif kind == "checkpoint":
            self._checkpoints = dataclasses.replace(
                there,
                num_written=there.num_written + 1,
                last_at=line["time"],
                last_s=line.get("seconds"),
                last_bytes=line.get("bytes"),
            )
        elif kind == "unsaved":
            self._checkpoints = dataclasses.replace(there, num_failures=there.num_failures + 1)
        if kind not in UNTOLD:
            what = f"update {line['update']}" if kind == "advanced" else cause
            if kind == "checkpoint":
                what = f"after update {line['update']}"
            said = "training" if kind == "advanced" else kind
            self._last_event = line["time"], f"{said}: {what}" if what else said

    def now(self, beat: Beat, at: float) -> Live:
        """The run at a moment; seconds since 1970."""
        has_begun = bool(self._reader.story.starts)
        spent = self._reader.spent_until(max(at, self._latest)) if has_begun else {}
        return Live(
            beat=beat,
            spent=spent or dict.fromkeys(Spent, 0.0),
            stops=dict(self._stops),
            checkpoints=self._checkpoints,
            last_event=self._last_event,
        )
