"""Tables in docs/performance.md on models of several sizes, and docs/cost-by-size.svg.

From the lines of benchmarks/at_size.jsonl. A line may be older than some of its fields: its cell is
then empty, the steps have rows of lines alone that tell steps, and the picture has lines alone that
tell the size of the state.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replay.tables import NAMES, NOT_RUN
from simulation.tables import table
from tables import put

Line = Mapping[str, Any]

PUT_BY = "put-by"
EVENTS: Mapping[str, tuple[str, str]] = {
    "kill-process": ("a training process is killed", "recovery_s"),
    "kill-node": ("a node is killed", "recovery_s"),
    "add-node": ("a node is added: the stall", "stall_s"),
    "drain": ("a node is left in time: the stall", "stall_s"),
    PUT_BY: ("the state is put by: the stall", ""),
}
"""What happens, and which of its seconds count."""

AIMS: Mapping[str, tuple[int, float, float]] = {
    "kill-process": (1, 1.0, 2),
    "kill-node": (1, 2.2, 2),
    "add-node": (1, 0.5, 1),
    "drain": (1, 0.5, 1),
    PUT_BY: (0, 0.0, 1.3),
}
"""Of each event: so many updates, seconds and plain copies."""

STEPS = (
    *("hold", "save", "gather", "fork", "meet", "model", "load", "data"),
    *("gradients", "optimizer", "agree"),
)
"""In the order in which they are taken."""

PICTURE = "![What each event costs over the size of the state](cost-by-size.svg)"
NOT_DRAWN = "The picture needs two sizes at least."


def write(lines: Sequence[Line], docs: Path) -> None:
    """Each table between its markers, and the picture where there is something to compare."""
    sized = [line for line in ours(lines) if "state_bytes" in line]
    is_drawn = len({line["state_bytes"] for line in sized}) > 1
    if is_drawn:
        draw(sized, docs / "cost-by-size.svg")
    page = (docs / "performance.md").read_text()
    page = put(page, "cost by size", costs(lines))
    page = put(page, "picture of cost by size", PICTURE if is_drawn else NOT_DRAWN)
    page = put(page, "steps by size", steps(lines))
    page = put(page, "peers at size", peers(lines))
    (docs / "performance.md").write_text(page)


def ours(lines: Sequence[Line]) -> list[Line]:
    """The smallest first; where that is not known, last."""
    chosen = [line for line in lines if line["contestant"] == "ours" and line["events"]]
    return sorted(chosen, key=lambda line: line.get("state_bytes", float("inf")))


def seconds_of(line: Line, event: str) -> list[float]:
    """What the event cost each time, sorted."""
    if event == PUT_BY:
        return sorted(line.get("put_by_s", ()))
    return sorted(each[EVENTS[event][1]] for each in line["events"].get(event, ()))


def costs(lines: Sequence[Line]) -> str:
    """A column a size; in each row what was measured, and the aim with that column's u and c."""
    shown = ours(lines)
    if not shown:
        return NOT_RUN
    rows = [
        ("u, an update", "", *(seconds(line.get("u_s")) for line in shown)),
        ("c, a plain copy of the state", "", *(seconds(line.get("c_s")) for line in shown)),
    ]
    for event, (text, _) in EVENTS.items():
        rows.append((text, aim(event), *(cost(line, event) for line in shown)))
    rows += [
        ("updates done again", "0", *(str(line["redone"]) for line in shown)),
        ("start to first update", "", *(seconds(line.get("start_s")) for line in shown)),
        ("measured on", "", *(line.get("date", "") for line in shown)),
    ]
    return table(("", "aim", *(name_of(line) for line in shown)), rows)


def aim(event: str) -> str:
    updates, more_s, copies = AIMS[event]
    parts = ["u"] * updates + [f"{more_s} s"] * bool(more_s)
    return " + ".join([*parts, "c" if copies == 1 else f"{copies:g} c"])


def cost(line: Line, event: str) -> str:
    """What was measured, and what is aimed at with the line's u and c."""
    values = seconds_of(line, event)
    if not values:
        return f"not measured: it {line['failed']}" if "failed" in line else ""
    updates, more_s, copies = AIMS[event]
    aimed_s = updates * line["u_s"] + more_s + copies * line["c_s"]
    return f"{spread(values)}, aim {seconds(aimed_s)}"


def name_of(line: Line) -> str:
    return f"{line['arch']}, {size(line['state_bytes'])}" if "state_bytes" in line else line["arch"]


def size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def digits(value: float) -> int:
    """Behind the point, for two that mean something at least."""
    return 1 if value >= 1.95 else 2 if value >= 0.095 else 3 if value >= 0.0095 else 4


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.{digits(value)}f} s"


def spread(values: Sequence[float]) -> str:
    """Median and range of values that are sorted, with as many digits."""
    median = statistics.median(values)
    places = digits(median)
    return f"{seconds(median)} ({values[0]:.{places}f} to {values[-1]:.{places}f})"


def steps(lines: Sequence[Line]) -> str:
    """A row a size and event: the median of each step."""
    told = {}
    for line in ours(lines):
        for event, (text, _) in EVENTS.items():
            each = [e["steps"] for e in line["events"].get(event, ()) if "steps" in e]
            if each:
                told[f"{line['arch']}, {text.removesuffix(': the stall')}"] = each
    taken = {name for each in told.values() for steps in each for name in steps}
    columns = [name for name in STEPS if name in taken] + sorted(taken.difference(STEPS))
    rows = [
        (row, *(f"{statistics.median(s.get(name, 0.0) for s in each):.2f}" for name in columns))
        for row, each in told.items()
    ]
    return table(("seconds", *columns), rows) if rows else NOT_RUN


def peers(lines: Sequence[Line]) -> str:
    """A row a contestant, at sizes where others have run than ours."""
    archs = sorted({line["arch"] for line in lines if line["contestant"] != "ours"})
    rows = []
    for arch in archs:
        for contestant, name in NAMES.items():
            for line in lines:
                if (line["arch"], line["contestant"]) == (arch, contestant):
                    u, start = seconds(line.get("u_s")), seconds(line.get("start_s"))
                    rows.append((f"{arch}, {name}", u, start, killed(line)))
    head = ("", "u", "start to first update", EVENTS["kill-process"][0])
    return table(head, rows) if rows else NOT_RUN


def killed(line: Line) -> str:
    """What a killed process costs; where one rank goes on before the other, both."""
    values = seconds_of(line, "kill-process")
    parts = [spread(values)] if values else []
    if values:
        whole = statistics.median(e["whole_s"] for e in line["events"]["kill-process"])
        if whole > statistics.median(values) + 0.05:
            parts.append(f"with both ranks {seconds(whole)}")
    if "failed" in line:
        parts.append(f"then it {line['failed']}" if values else line["failed"])
    return ", ".join(parts)


def draw(lines: Sequence[Line], path: Path) -> None:
    """A curve an event over the size of the state, with ranges; both axes are logarithmic.

    Args:
        lines: with `state_bytes`, the smallest first.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "cost by size"
    from matplotlib import pyplot, ticker

    figure, ax = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for event, (text, _) in EVENTS.items():
        at = [(line["state_bytes"], seconds_of(line, event)) for line in lines]
        points = [
            (x, values[0], statistics.median(values), values[-1]) for x, values in at if values
        ]
        if points:
            xs, lows, medians, highs = zip(*points, strict=True)
            (curve,) = ax.plot(xs, medians, "o-", label=text)
            ax.vlines(xs, lows, highs, color=curve.get_color())
    scale = [(line["state_bytes"], line["u_s"] + line["c_s"]) for line in lines]
    ax.plot(*zip(*scale, strict=True), ":", color="0.4", label="u + c")
    ax.set(xscale="log", yscale="log", xlabel="state", ylabel="seconds (median and range)")
    sizes = {line["state_bytes"]: f"{size(line['state_bytes'])}\n{line['arch']}" for line in lines}
    ax.set_xticks([*sizes], [*sizes.values()])
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.grid(axis="y", color="0.9")
    ax.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
