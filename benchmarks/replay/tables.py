"""The tables on goodput in docs/performance.md, and docs/goodput.svg, from lines of results."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulation import young_daly
from simulation.tables import percent, table
from tables import put

from replay.measure import Loss

NAMES = {
    "ours": "fairseq-ray-train",
    "torchft": "torchft",
    "torchrun": "stock fairseq under elastic torchrun",
    "ray_train": "stock fairseq in Ray Train",
    "walkthrough_2019": "the 2019 script",
}
COLORS = {
    "ours": "C0",
    "torchft": "C1",
    "torchrun": "C2",
    "ray_train": "C3",
    "walkthrough_2019": "C4",
}
PER_UPDATE = 24
"""Samples."""

LAST_UPDATES = 50

PICTURE = (
    "![Training while nodes come and go, what was not trained, and goodput over the time between "
    "kills](goodput.svg)"
)
NOT_RUN = "Not run yet."

Line = Mapping[str, Any]


def write(lines: Sequence[Line], docs: Path) -> None:
    """Each table between its markers; what has not been run is left out."""
    is_drawn = bool(of_kind(lines, "trace") and of_kind(lines, "mtbf"))
    if is_drawn:
        draw(lines, docs / "goodput.svg")
    page = (docs / "performance.md").read_text()
    page = put(page, "picture of goodput", PICTURE if is_drawn else NOT_RUN)
    page = put(page, "goodput", trace(lines))
    page = put(page, "goodput of kills", kills(lines))
    page = put(page, "goodput of ours", spent(lines))
    (docs / "performance.md").write_text(page)


def of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    """In the order of the names."""
    chosen = [line for line in lines if line["kind"] == kind]
    return sorted(chosen, key=lambda line: list(NAMES).index(line["contestant"]))


def trace(lines: Sequence[Line]) -> str:
    rows = []
    for run in of_kind(lines, "trace"):
        name = f"{NAMES[run['contestant']]}, {run['speed']:g} times, from hour {run['from_h']:g}"
        if "goodput" not in run:
            rows.append((name, run["failed"]))
            continue
        cells = [percent(run["lost"][kind.value]) for kind in Loss]
        end = f"{run['losses']['end']:.3f} ({reference(lines, run)})"
        rows.append(
            (
                f"{name}{': it ended' if 'failed' in run else ''}",
                f"**{percent(run['goodput'])}**",
                *cells,
                f"{run['longest_s']:.1f} s",
                f"{run['redone']:,}",
                end,
            )
        )
    head = ("", "goodput", *(kind.value for kind in Loss), "longest pause", "redone")
    return table((*head, "loss at the end (undisturbed)"), rows) if rows else NOT_RUN


def reference(lines: Sequence[Line], run: Line) -> str:
    """The loss of an undisturbed run that has seen as many samples."""
    undisturbed = [line["each"] for line in lines if line["kind"] == "reference"]
    update = run["losses"]["samples"] // PER_UPDATE
    if not undisturbed or update > len(undisturbed[0]):
        return "not run"
    return f"{statistics.fmean(undisturbed[0][update - LAST_UPDATES : update]):.3f}"


def between(run: Line) -> float:
    """Seconds between failures, as they came."""
    return run["seconds"] / max(1, run["faults"])


def optimum(lines: Sequence[Line], mtbf_s: float) -> float | None:
    """What Young and Daly's formula gives with what checkpoints and restarts cost torchrun here."""
    costs = costs_of(lines)
    return None if costs is None else young_daly.efficiency(mtbf_s, *costs)


def costs_of(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Seconds of a checkpoint on two nodes, and of a restart without one (medians)."""
    saves = [line["save_s"] for line in lines if (line["kind"], line.get("size")) == _TWO]
    restarts = [
        seconds
        for run in of_kind(lines, "mtbf")
        if run["contestant"] == "torchrun"
        for seconds in run.get("restarts_s", ())
    ]
    if not saves or not restarts:
        return None
    return max(0.001, saves[0]), statistics.median(restarts)


_TWO = ("undisturbed", 2)


def kills(lines: Sequence[Line]) -> str:
    runs = of_kind(lines, "mtbf")
    asked = sorted({run["mtbf_s"] for run in runs})
    rows = []
    for contestant, name in NAMES.items():
        of = {run["mtbf_s"]: run for run in runs if run["contestant"] == contestant}
        if of:
            rows.append((name, *(cell(of.get(mtbf_s)) for mtbf_s in asked)))
    formula = []
    for mtbf_s in asked:
        came = [between(run) for run in runs if run["mtbf_s"] == mtbf_s and "faults" in run]
        share = optimum(lines, statistics.median(came or [mtbf_s]))
        formula.append("not known" if share is None else percent(share))
    if not asked:
        return NOT_RUN
    rows.append(("Young-Daly, with torchrun's costs", *formula))
    return table(("", *(f"{mtbf_s:g} s" for mtbf_s in asked)), rows)


def cell(run: Line | None) -> str:
    if run is None:
        return "not run"
    if "goodput" not in run:
        return "did not begin"
    text = f"{percent(run['goodput'])} ({run['faults']} in {run['seconds']:.0f} s)"
    return text + (": ended" if "failed" in run else "")


def spent(lines: Sequence[Line]) -> str:
    """Ours by its own account."""
    runs = [run for run in of_kind(lines, "trace") if "account" in run]
    if not runs:
        return NOT_RUN
    kinds = [kind for kind in runs[0]["account"]["spent"]]
    rows = [
        (
            f"{run['speed']:g} times, from hour {run['from_h']:g}",
            percent(run["account"]["goodput"]),
            *(f"{run['account']['spent'][kind]:.1f}" for kind in kinds),
        )
        for run in runs
    ]
    return table(("seconds of slots", "goodput", *kinds), rows)


def draw(lines: Sequence[Line], path: Path) -> None:
    """Training over the trace, what was lost, and goodput over the time between failures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "goodput"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    runs = [run for run in of_kind(lines, "trace") if "goodput" in run]
    over_time(runs, axes[0])
    bars(runs, axes[1])
    by_mtbf(lines, axes[2])
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def over_time(runs: Sequence[Line], ax: Any) -> None:
    for run in runs:
        times, trained, _ = zip(*run["progress"], strict=True)
        name = run["contestant"]
        ax.plot(times, trained, color=COLORS[name], label=NAMES[name])
    times, _, possible = zip(*runs[0]["progress"], strict=True)
    ax.plot(times, possible, ":", color="0.4", label="undisturbed, on the nodes there were")
    ax.set(title="p3's nodes come and go", xlabel="seconds", ylabel="samples trained")
    ax.legend(loc="upper left", fontsize="small")


def bars(runs: Sequence[Line], ax: Any) -> None:
    names = [textwrap.fill(NAMES[run["contestant"]], 13) for run in runs]
    below = [0.0] * len(runs)
    for kind, color in zip(Loss, ("C9", "C4", "C8", "0.8"), strict=True):
        heights = [100 * max(0.0, run["lost"][kind.value]) for run in runs]
        ax.bar(names, heights, bottom=below, label=kind.value, color=color)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    ax.tick_params("x", labelsize="small")
    ax.set(title="what was not trained", ylabel="% of what was possible")
    ax.legend(loc="upper left", fontsize="small")


def by_mtbf(lines: Sequence[Line], ax: Any) -> None:
    runs = [run for run in of_kind(lines, "mtbf") if "goodput" in run]
    for name, color in COLORS.items():
        points = sorted((between(r), r["goodput"]) for r in runs if r["contestant"] == name)
        if points:
            ax.plot(*zip(*points, strict=True), "o-", color=color, label=NAMES[name])
    times = sorted(between(run) for run in runs)
    curve = [times[0] * (times[-1] / times[0]) ** (i / 50) for i in range(51)]
    if costs_of(lines):
        ax.plot(curve, [optimum(lines, s) for s in curve], ":", color="0.4", label="Young-Daly")
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="seconds between kills", title="processes die")
    ax.set_ylabel("goodput")
    ax.set_xticks((10, 30, 100, 300), ("10", "30", "100", "300"))
    ax.minorticks_off()
    ax.legend(loc="lower right", fontsize="small")
