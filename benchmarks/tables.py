"""The tables of docs/performance.md, from benchmarks/results.jsonl."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results.jsonl"
PAGE = RESULTS.parent.parent / "docs" / "performance.md"

NAMES = {
    "ours": "fairseq-ray-train",
    "walkthrough_2019": "the 2019 script",
    "ray_train": "stock fairseq in Ray Train",
}
SPEED_NAMES = {
    **NAMES,
    "torchrun": "torchrun, alone on the machine",
    "torchrun beside idle Ray nodes": "torchrun, beside idle Ray nodes",
    "ours, RAY_worker_niceness=0": "fairseq-ray-train, RAY_worker_niceness=0",
}
FAULTS = {
    "kill-process": ("a training process is killed", "recovery_s"),
    "kill-node": ("a node is killed", "recovery_s"),
    "hang": ("a training process stands still", "recovery_s"),
    "add-node": ("a node is added: the stall", "stall_s"),
}


def write() -> None:
    """Put the tables between their markers in the page."""
    results = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        result = json.loads(line)
        results[result["fault"], result["contestant"]].append(result)
    page = PAGE.read_text()
    for name, table in (("faults", faults(results)), ("speed", speed(results))):
        page = put(page, name, table)
    PAGE.write_text(page)


def put(page: str, name: str, table: str) -> str:
    """The page with the table between its markers."""
    before, rest = page.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- end of {name} -->")
    return f"{before}<!-- {name} -->\n{table}\n<!-- end of {name} -->{after}"


def faults(results) -> str:
    rows = [f"| | {' | '.join(NAMES.values())} |", "|---|" + "---|" * len(NAMES)]
    for fault, (text, key) in FAULTS.items():
        cells = [cell(results.get((fault, name), []), key) for name in NAMES]
        rows.append(f"| {text} | {' | '.join(cells)} |")
    starts = [[r["start_s"] for f in FAULTS for r in results.get((f, name), [])] for name in NAMES]
    cells = [f"{statistics.median(s):.1f} s ({len(s)} runs)" if s else "not run" for s in starts]
    rows.append(f"| start to the end of the first update | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(runs: list[dict], key: str) -> str:
    """Median, range and number of runs; updates done again."""
    if not runs:
        return "not run"
    failed = [run["failed"] for run in runs if "failed" in run]
    if failed:
        return f"did not go on ({len(failed)} of {len(runs)} runs)"
    values = sorted(run[key] for run in runs)
    redone = sorted({run["redone"] for run in runs})
    again = str(redone[0]) if len(redone) == 1 else f"{redone[0]} to {redone[-1]}"
    spread = f"{values[0]:.2f} to {values[-1]:.2f}, " if len(values) > 1 else ""
    count = f"{len(values)} run" + "s" * (len(values) > 1)
    return f"{statistics.median(values):.2f} s ({spread}{count}), {again} redone"


def speed(results) -> str:
    runs = {name: r for (fault, name), r in results.items() if fault == "speed"}
    rows = ["| | updates/s | of torchrun alone, in the same turn |", "|---|---|---|"]
    alone = [run["updates_s"] for run in runs.get("torchrun", [])]
    for name, turns in runs.items():
        speeds = [run["updates_s"] for run in turns]
        ratios = [a / b for a, b in zip(speeds, alone, strict=True)]
        text = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append(
            f"| {SPEED_NAMES[name]} | {statistics.median(speeds):.2f} | "
            f"{statistics.median(ratios):.3f} ({text}, {len(ratios)} turns) |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    write()
