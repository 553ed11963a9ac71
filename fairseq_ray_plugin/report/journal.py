"""What happened to a run, as events: one JSON object a line in `elastic.jsonl`."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

FILE_NAME = "elastic.jsonl"


class EventKind(enum.Enum):
    """What can happen to a run; a member's value is the `kind` of a line in the journal."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> EventKind:
        member = object.__new__(cls)
        member._value_, member.meaning = word, meaning
        return member

    WAITING = "waiting", "there are too few workers to train"
    SLOTS = "slots", "workers came to their nodes, had imported everything, or went"
    BEGINNING = "beginning", "a generation is told to start: on which workers, from which update"
    STARTED = "started", "the training processes of a generation run: their nodes and pids"
    ADVANCED = "advanced", "the generation's first update is complete: seconds of each step to it"
    CHECKPOINT = "checkpoint", "a checkpoint has been written: its path, and the update it is after"
    PROGRESS = "progress", "what the generation's seconds went to so far, and what it last logged"
    STOPPING = "stopping", "a generation is asked to come to rest"
    STOPPED = "stopped", "a generation has stopped: why, with the traceback of what was raised"
    TAKEN_OVER = "taken over", "the control loop had died, and another goes on with its workers"
    NOTICE = "notice", "a node is to be taken away"
    STANDBY = "standby", "ranks that were made ahead of a stop are of no use: why"
    SLOW = "slow", "the others wait for a rank: what a mini-batch takes it, and the median rank"
    STACKS = "stacks", "what every thread of a rank was doing in a hang"
    LEFT_OUT = "left out", "training fails on a node or a GPU again and again: it goes on without"
    UNFIT = "unfit", "a worker did not start"
    REMOVED = "removed", "a worker was let go that did not start, or does not answer"
    OUT_OF_MEMORY = "out of memory", "a mini-batch was too large for a GPU: was it dropped"
    UNSAVED = "unsaved", "a state could not be written"
    SPARE = "spare", "there is room for more workers than have something to do"
    FINISHED = "finished", "the run is over: training came to its end"
    FAILED = "failed", "the run is over: it was given up"
    INTERRUPTED = "interrupted", "the run is over: it was told to end"


QUIET = frozenset([EventKind.SLOTS, EventKind.BEGINNING, EventKind.PROGRESS, EventKind.STOPPING])
"""What is written down for the account of the run alone, and not said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the journal."""

    kind: EventKind
    generation: int
    world_size: int
    update: int | None
    """Updates completed; None where no update is known."""

    cause: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of the line, such as the ranks of a generation."""


class Journal:
    """Appends events to the file in a folder, one unbuffered line each.

    A folder that cannot be written is the user's to mend: OSError passes through.

    Args:
        run: whose events they are; several runs may have the same folder.
        save_dir: what the user knows the folder by.
    """

    def __init__(self, folder: str, run: str = "", save_dir: str = "") -> None:
        os.makedirs(folder, exist_ok=True)
        self.run, self.save_dir = run, save_dir or folder
        self.path = os.path.join(folder, FILE_NAME)
        # a driver that was killed may have left half a line: never join ours to it
        with open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append what `line` returned."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "run": self.run}) + "\n")

    def of_run(self) -> list[dict[str, Any]]:
        """What happened to this run so far, oldest first."""
        return [line for line in read(self.path) if line.get("run") == self.run]


def line(event: Event) -> dict[str, Any]:
    """The fields of an event that happens now, as in the file."""
    return {
        "time": round(time.time(), 3),
        "kind": event.kind.value,
        "generation": event.generation,
        "world_size": event.world_size,
        "update": event.update,
        "cause": event.cause,
        **event.details,
    }


def read(path: str) -> list[dict[str, Any]]:
    """The events in a journal file, oldest first; a half-written line is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return parse(file)


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events in lines of a journal; a half-written line is left out."""
    events = []
    for text in lines:
        try:
            events.append(json.loads(text))
        except ValueError:
            continue
    return events


def summary(events: Iterable[Mapping[str, Any]]) -> str:
    """One line on what a run went through: sizes, stops, and the seconds they cost.

    A stop's cost is the time from it to the end of the first update of the next generation.
    """
    sizes: list[int] = []
    stops = dropped = 0
    lost = 0.0
    stopped_at: float | None = None
    update = 0
    for event in events:
        update = max(update, event["update"] or 0)
        if event["kind"] == "started" and event["world_size"] not in sizes[-1:]:
            sizes.append(event["world_size"])
        elif event["kind"] == "stopped":
            stops += 1
            stopped_at = stopped_at if stopped_at is not None else event["time"]
        elif event["kind"] == "advanced" and stopped_at is not None:
            lost += event["time"] - stopped_at
            stopped_at = None
        elif event["kind"] == "out of memory" and event.get("dropped"):
            dropped += 1
    world = " -> ".join(map(str, sizes)) or "none"
    text = f"{update} updates; workers {world}; {stops} restarts took {lost:.1f} s in all"
    return text + (f"; {dropped} mini-batches were dropped for lack of memory" if dropped else "")
