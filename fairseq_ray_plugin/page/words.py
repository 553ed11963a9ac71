"""How times, shares and causes are said to people."""

from __future__ import annotations

import datetime

from fairseq_ray_plugin.accounting.account import Account
from fairseq_ray_plugin.accounting.live import Live
from fairseq_ray_plugin.accounting.slowest import SlowRank
from fairseq_ray_plugin.accounting.spent import Spent


def duration(seconds: float) -> str:
    """Two units at the most: `0.52 s`, `41 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if 0 < seconds < 0.95 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    for unit, name, lower, lower_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // lower
            return f"{whole // unit} {name}" + (f" {rest} {lower_name}" if rest else "")
    return f"{whole} s"


def share(part: float, whole: float) -> str:
    """In percent, with a digit after the point."""
    return f"{100 * part / whole:.1f}%" if whole > 0 else "-"


def clock(at: float) -> str:
    """A time of day, UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def first_line(text: str, limit: int = 160) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def sizes(told: Account, limit: int = 12) -> str:
    """The world sizes, the first and last of them where there are many."""
    there = [str(size) for size in told.sizes]
    if len(there) > limit:
        there = [*there[: limit // 2], "...", *there[-limit // 2 :]]
    return " -> ".join(there) or "none"


def outcome(told: Account) -> str:
    last = told.story.starts[-1]
    if last.outcome is None:
        return f"goes on, or was killed; last heard of at {clock(told.story.end)} UTC"
    return last.outcome


def goodput_line(told: Account, most: int = 3) -> str:
    """One line: how much was training, and what the rest went to, the most first."""
    there = sum(told.spent.values())
    lost = [f"{share(s, there)} {kind.value}" for kind, s in told.lost[:most] if s > 0.0005 * there]
    text = f"goodput {told.goodput:.3f}; of {duration(told.wall_s)} x {told.slots} slots "
    trained = share(told.spent[Spent.PRODUCTIVE_TRAINING], there)
    return text + ", ".join([f"{trained} training", *lost])


def recovery(told: Account) -> str:
    values = told.recovery_s(0.5, 0.9, 1.0)
    if not values:
        return "none"
    p50, p90, worst = map(duration, values)
    return f"p50 {p50}, p90 {p90}, worst {worst}"


def failures(told: Account) -> str:
    """How many, and how often."""
    if told.between_failures_s is None:
        return "none"
    return f"{len(told.failures)}, one every {duration(told.between_failures_s)}"


def slow(there: SlowRank) -> tuple[str, ...]:
    """Node, rank, what a mini-batch took it, the part that was data, over the median, named."""
    return (
        there.node[:12],
        str(there.rank),
        f"{there.seconds:.3g} s",
        share(there.data, there.seconds),
        f"{100 * (there.ratio - 1):.0f}%",
        str(there.num_named or "-"),
    )


def status(live: Live, at: float) -> str:
    """One line on a run that goes on: what is most wanted first, for the rest may be cut off.

    Args:
        at: seconds since 1970.
    """
    beat = live.beat
    parts = [f"{beat.world_size} workers", f"update {beat.update}"]
    if beat.updates_per_s:
        parts.append(f"{beat.updates_per_s:.3g} updates/s")
    parts.append(f"goodput {live.goodput:.3f}")
    for (node, rank), ratio in list(beat.slow.items())[:1]:
        parts.append(f"slow: rank {rank} on {node[:8]}, {100 * (ratio - 1):.0f}% over the median")
    if live.last_event is not None:
        since, said = live.last_event
        parts.append(f"{duration(max(0, round(at - since)))} ago {said}")
    return " | ".join(parts)
