"""One replay: a schedule happens to a launcher's nodes, and what was trained is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from replay.launchers import Launcher, Ours, wait_until
from replay.measure import Update, measure, restarts, updates_of
from replay.schedule import Schedule

BEGIN_LIMIT_S = 240.0
LAST_UPDATES = 50
"""The loss at the end is the mean of so many."""


def replay(launcher: Launcher, schedule: Schedule, rate: Mapping[int, float]) -> dict[str, Any]:
    """Let it happen; what came of it, as a line of results.

    Args:
        rate: samples a second, undisturbed, by the number of slots.
    """
    size = len(schedule.first)
    slots: list[tuple[float, int]] = []
    faults: list[float] = []
    start = time.time()
    try:
        launcher.begin(schedule.first)
        slots.append((time.time(), size))

        def first() -> list[dict]:
            return [line for line in launcher.lines("done") if line["world"] == size][:1]

        if not wait_until(launcher, first, BEGIN_LIMIT_S):
            return {"failed": f"no update on {size} nodes in {BEGIN_LIMIT_S:.0f} s"}
        begin = first()[0]["time"]
        for change in schedule.changes:
            _wait(launcher, begin + change.at)
            at = time.time()
            match change.kind:
                case "add":
                    size += 1
                    launcher.add(change.node)
                case "remove":
                    size -= 1
                    launcher.remove(change.node)
                    faults.append(at)
                case "kill":
                    if launcher.kill(change.node):
                        faults.append(at)
            slots.append((at, size))
        end = begin + schedule.length_s
        _wait(launcher, end)
        ended = not launcher.is_alive()
    finally:
        launcher.end()
    updates = updates_of(launcher.lines("begun"), launcher.lines("done"))
    measured = measure(updates, slots, rate, begin, end)
    result = {
        "seconds": round(measured.seconds, 1),
        "start_s": round(begin - start, 1),
        "goodput": round(measured.goodput, 4),
        "lost": {k.value: round(v / measured.possible, 4) for k, v in measured.lost.items()},
        "updates": measured.updates,
        "redone": measured.redone,
        "longest_s": round(measured.longest_s, 1),
        "faults": len(faults),
        "restarts_s": [round(s, 2) for s in restarts(updates, faults)],
        "losses": losses(launcher.lines("done"), updates),
        "progress": measured.progress,
    }
    if ended:
        result["failed"] = "the training ended: " + launcher.runs[0].tail()[-500:]
    if isinstance(launcher, Ours):
        result["account"] = account(launcher)
    return result


def _wait(launcher: Launcher, until: float) -> None:
    while (left := until - time.time()) > 0 and launcher.is_alive():
        time.sleep(min(left, 0.2))


def losses(done: Sequence[Mapping[str, Any]], updates: Sequence[Update]) -> dict[str, Any]:
    """The loss of each update, the last time that it was done, and how much it had then seen."""
    of = {line["update"]: line["loss"] for line in done if line.get("loss") is not None}
    last = sorted(of)[-LAST_UPDATES:]
    samples = {update.number: update.samples for update in updates}
    return {
        "end": round(statistics.fmean(of[update] for update in last), 4) if last else None,
        "samples": sum(samples.values()),
        "each": [round(of[update], 3) if update in of else None for update in range(1, max(of) + 1)]
        if of
        else [],
    }


def account(launcher: Launcher) -> dict[str, Any]:
    """Ours says itself where the time went, from its journal; seconds of slots."""
    from fairseq_ray_plugin.accounting.account import account as account_of

    told = account_of(launcher.runs[0].events())
    return {
        "goodput": round(told.goodput, 4),
        "spent": {kind.value: round(seconds, 1) for kind, seconds in told.spent.items()},
        "recovery_s": [round(s, 2) for s in told.recovery_s(0.5, 0.9, 1.0)],
    }
