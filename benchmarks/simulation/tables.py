"""The simulation's tables in docs/performance.md, and docs/simulation.svg."""

from __future__ import annotations

import json
from pathlib import Path

from simulation import young_daly
from simulation.ledger import Use
from simulation.training import ROBERTA, SMALL

COLORS = {32: "C0", 1000: "C1", 10_000: "C3"}
COLUMNS = {
    "training": (Use.TRAINING,),
    "updates done again": (Use.REDONE,),
    "restarts after a loss": (Use.LOSS,),
    "restarts to leave in time": (Use.LEAVING,),
    "restarts to take workers in": (Use.RESIZE,),
    "snapshots, checkpoints": (Use.SNAPSHOT,),
    "there, and not used": (Use.PLACING, Use.READY, Use.LEFT),
}


def write(results: Path, docs: Path) -> None:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    runs = [line for line in lines if "shares" in line]
    page = (docs / "performance.md").read_text()
    for name, table in (
        ("traces", traces([run for run in runs if "trace" in run])),
        ("chance", chance([run for run in runs if "mtbf_h" in run])),
        ("steps", steps([line for line in lines if "steps" in line])),
    ):
        before, rest = page.split(f"<!-- {name} -->")
        _, after = rest.split(f"<!-- end of {name} -->")
        page = f"{before}<!-- {name} -->\n{table}\n<!-- end of {name} -->{after}"
    (docs / "performance.md").write_text(page)
    draw(runs, docs / "simulation.svg")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines[0] = lines[0].replace("|  |", "| |")
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def share(run: dict, uses: tuple[Use, ...]) -> float:
    return sum(run["shares"][use.value] for use in uses)


def traces(runs: list[dict]) -> str:
    rows = []
    for run in runs:
        name = f"{run['trace']}, {run['slots']:,} slots, {run['costs']}"
        if run["notice_s"]:
            name += f", {run['notice_s']:.0f} s notice"
        between = f"{run['mtbf_of_job_s']:.0f} s"
        cells = [percent(share(run, uses)) for uses in COLUMNS.values()]
        rows.append((name, between, *cells, percent(run["young_daly"])))
    return table(("", "a loss every", *COLUMNS, "Young-Daly"), rows)


def chance(runs: list[dict]) -> str:
    rows = []
    for costs in (SMALL.name, ROBERTA.name):
        for slots in COLORS:
            by_mtbf = {
                run["mtbf_h"]: run for run in runs if (run["slots"], run["costs"]) == (slots, costs)
            }
            cells = [
                f"{percent(run['shares']['training'])} ({percent(run['young_daly'])})"
                if (run := by_mtbf.get(hours))
                else ""
                for hours in (1, 4, 24, 96, 384)
            ]
            rows.append((f"{slots:,} slots, {costs}", *cells))
    return table(("", "1 hour", "4 hours", "1 day", "4 days", "16 days"), rows)


def steps(lines: list[dict]) -> str:
    kinds = [kind for kind in lines[0] if kind != "steps"]
    rows = [
        (
            f"{line['steps']:,}",
            *(f"{line[k]['median_ms']:.2f} ({line[k]['worst_ms']:.2f})" for k in kinds),
        )
        for line in lines
    ]
    return table(("slots", *kinds), rows)


def draw(runs: list[dict], path: Path) -> None:
    """Goodput over the nodes' time between failures, and what the traces' losses cost."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "simulation"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for costs, ax in zip((SMALL, ROBERTA), axes[:2], strict=True):
        for slots, color in COLORS.items():
            points = sorted(
                (run["mtbf_h"], run["shares"]["training"], run["slots"] // run["slots_per_node"])
                for run in runs
                if "mtbf_h" in run and (run["slots"], run["costs"]) == (slots, costs.name)
            )
            hours, training, nodes = zip(*points, strict=True)
            ax.plot(hours, training, "o-", color=color, label=f"{slots:,} slots")
            curve = [hours[0] * (hours[-1] / hours[0]) ** (i / 50) for i in range(51)]
            optimum = [young_daly.of(costs, h * 3600 / nodes[0]) for h in curve]
            ax.plot(curve, optimum, ":", color=color)
        ax.plot([], [], ":", color="0.4", label="Young-Daly")
        ax.set(xscale="log", ylim=(0, 1.02), title=costs.name, xlabel="hours that a node lasts")
        ax.set_xticks((1, 4, 24, 96, 384), ("1", "4", "24", "96", "384"), minor=False)
        ax.minorticks_off()
    axes[0].set_ylabel("training, of the slots' time")
    axes[1].legend(loc="lower right")
    bars(runs, axes[2])
    figure.savefig(path, metadata={"Date": None})


def bars(runs: list[dict], ax) -> None:  # type: ignore[no-untyped-def]
    chosen = [
        run for run in runs if run.get("trace") and run["slots"] == 32 and run["notice_s"] is None
    ]
    names = [f"{run['trace']},\n{run['costs'].split()[0]}" for run in chosen]
    below = [0.0] * len(chosen)
    for column, uses in list(COLUMNS.items())[1:]:
        heights = [100 * share(run, uses) for run in chosen]
        if any(heights):
            ax.bar(names, heights, bottom=below, label=column)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    ax.set(title="Bamboo's traces: not training", ylabel="% of the slots' time")
    ax.legend(loc="upper left", fontsize="small")
