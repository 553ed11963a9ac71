"""The account of a run as a trace: a track a slot, for ui.perfetto.dev and chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fairseq_ray_plugin.accounting.account import Account
from fairseq_ray_plugin.page import lanes
from fairseq_ray_plugin.page.charts import kind_of

_NAMES = {
    "start": "starting",
    "load": "fork and load",
    "train": "training",
    "stall": "coming to rest",
    "idle": "not used",
}

RUN, SLOTS = 1, 2
"""The two groups of tracks."""


def trace(told: Account) -> str:
    """In the trace event format; its times are microseconds from the first line."""
    events = list(_events(told))
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _events(told: Account) -> Iterable[dict[str, Any]]:
    story = told.story
    yield _name("process_name", RUN, 0, "the run")
    yield _name("process_name", SLOTS, 0, "slots")

    def micros(at: float) -> int:
        return round((at - story.begin) * 1e6)

    of = lanes.by_worker(story)
    for number, row in enumerate(lanes.lanes(story)):
        yield _name("thread_name", SLOTS, number, f"{row.slots[0].node[:8]} {row.slots[0].name}")
        for slot in row.slots:
            for span in lanes.spans(slot, of.get(slot.name, []), story.end):
                if span.end <= span.begin or span.kind == "idle":
                    continue
                there: dict[str, Any] = {"slot": slot.name, "node": slot.node}
                if span.generation is not None:
                    there["generation"] = span.generation.number
                    there["from update"] = span.generation.source
                yield {
                    "name": _NAMES[span.kind],
                    "ph": "X",
                    "pid": SLOTS,
                    "tid": number,
                    "ts": micros(span.begin),
                    "dur": micros(span.end) - micros(span.begin),
                    "args": there,
                }
    for generation in story.generations:
        for at, size in ((generation.begin, generation.world_size), (generation.end, 0)):
            if at is not None:
                yield {"name": "workers", "ph": "C", "pid": RUN, "ts": micros(at)} | {
                    "args": {"workers": size}
                }
    for event in story.events:
        if kind_of(event) is not None:
            yield {
                "name": event["kind"],
                "ph": "i",
                "s": "p",
                "pid": RUN,
                "tid": 0,
                "ts": micros(event["time"]),
                "args": {"cause": event.get("cause"), "update": event.get("update")},
            }


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
