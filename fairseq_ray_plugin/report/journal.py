"""What happened to a run, as events: one JSON object a line in `elastic.jsonl`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fairseq_ray_plugin.protocol import JournalEvent

FILE_NAME = "elastic.jsonl"


class Journal:
    """Appends events to the file in a folder, one unbuffered line each.

    A folder that cannot be written is the user's to mend: OSError passes through.
    """

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, FILE_NAME)
        # a driver that was killed may have left half a line: never join ours to it
        with open(self.path, "a+b") as file:
            self._begin = file.tell()
            if self._begin:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def write(self, event: JournalEvent) -> None:
        line = {
            "time": round(time.time(), 3),
            "kind": event.kind,
            "generation": event.generation,
            "world_size": event.world_size,
            "update": event.update,
            "cause": event.cause,
            **event.details,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def written(self) -> list[dict[str, Any]]:
        """The events since this journal was opened, without those of earlier runs."""
        return read(self.path, self._begin)


def read(path: str, begin: int = 0) -> list[dict[str, Any]]:
    """The events in a journal file, oldest first; a half-written line is left out.

    Args:
        begin: bytes to pass over.
    """
    events = []
    with open(path, encoding="utf-8") as file:
        file.seek(begin)
        for line in file:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
    return events


def summary(events: Iterable[Mapping[str, Any]]) -> str:
    """One line on what a run went through: sizes, stops, and the seconds they cost.

    A stop's cost is the time from it to the end of the first update of the next generation.
    """
    sizes: list[int] = []
    stops = 0
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
    world = " -> ".join(map(str, sizes)) or "none"
    return f"{update} updates; workers {world}; {stops} restarts took {lost:.1f} s in all"
