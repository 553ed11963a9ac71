"""The table of docs/durability.md, from benchmarks/durability.jsonl."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "durability.jsonl"
PAGE = RESULTS.parent.parent / "docs" / "durability.md"

NAMES = {
    "full": "the disk of the save dir is full",
    "read-only": "it is made read-only",
    "stands still": "it stands still (`fsfreeze`)",
    "damage": "the newest checkpoint is damaged, each time in another place; the same command",
    "writer": "the process that writes a checkpoint is killed",
    "rank": "a training process is killed during a save",
    "worker": "a worker is killed during a save",
    "loop": "the control loop's process is killed during a save",
    "local": "the command is killed during a save, and its local Ray with it; the same command",
    "command": "the command is killed during a save; the same command, or `--ray-attach`",
    "told to end": "SIGTERM to the command during a save; the same command",
    "two commands": "a second command with the same `--save-dir`",
    "head": "Ray's head is killed, with storage (RocksDB), and started again",
    "head's machine": "the same, with all that runs on its machine: the loop and the command, too",
    "head without storage": "Ray's head is killed, without storage; the same command",
    "head's machine without storage": "the same, with all that runs on its machine",
}


def write() -> None:
    """Put the table between its markers in the page."""
    results = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            result = json.loads(line)
            results[result["row"]] = result
    page = PAGE.read_text()
    before, rest = page.split("<!-- rows -->")
    _, after = rest.split("<!-- end of rows -->")
    PAGE.write_text(f"{before}<!-- rows -->\n{rows(results)}\n<!-- end of rows -->{after}")


def rows(results: dict[str, dict]) -> str:
    heads = ("what happens", "times", "what follows", "newest state used", "updates done again")
    lines = [f"| {' | '.join(heads)} | losses compared, different |", "|---" * 6 + "|"]
    for name, text in NAMES.items():
        if (result := results.get(name)) is None:
            lines.append(f"| {text} | not run | | | | |")
            continue
        times = result["times"]
        used = f"{result.get('kept', times)} of {times}"
        cells = (text, times, result["what"], used, result["redone"])
        lines.append(f"| {' | '.join(map(str, cells))} | {result['compared']}, 0 |")
    return "\n".join(lines)
