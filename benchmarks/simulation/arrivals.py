"""When nodes come and go: Bamboo's traces, copies of one side by side, or failures by chance."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

TRACES = Path(__file__).resolve().parent.parent / "traces"


@dataclasses.dataclass(frozen=True, order=True)
class Change:
    """A node comes ("add") or goes ("remove"), or a process on it dies ("kill")."""

    at: float
    """Seconds from the beginning."""

    kind: str
    node: str


def bamboo(instance: str) -> list[Change]:
    """The trace of "p3" or "g4dn" instances, from the first one's coming."""
    lines = (TRACES / f"bamboo-{instance}.csv").read_text().split()
    fields = [line.split(",") for line in lines]
    begin = int(fields[0][0])
    return [Change((int(at) - begin) / 1000, kind, node) for at, kind, node in fields]


def side_by_side(trace: list[Change], num_copies: int) -> list[Change]:
    """So many copies of a trace, each begun at another time of it, and gone round."""
    length = trace[-1].at
    stays: dict[str, list[float]] = {}
    for change in trace:
        stays.setdefault(change.node, [change.at, length])[change.kind == "remove"] = change.at
    changes = []
    for copy in range(num_copies):
        for turn in (0, 1):
            ahead = length * (turn - copy / num_copies)
            for node, (come, go) in stays.items():
                first, last = max(come + ahead, 0.0), min(go + ahead, length)
                if first < last:
                    name = f"{copy}.{turn}.{node}"
                    changes.append(Change(first, "add", name))
                    changes.append(Change(last, "remove", name))
    return sorted(changes)


def by_chance(
    num_nodes: int, mtbf_s: float, length_s: float, replaced_after_s: float = 120.0, seed: int = 0
) -> list[Change]:
    """Nodes that each last `mtbf_s` on average, and for which another comes after a while."""
    chance = random.Random(seed)
    changes = []
    for node in range(num_nodes):
        at, life = 0.0, 0
        while at < length_s:
            name = f"{node}.{life}"
            changes.append(Change(at, "add", name))
            at += chance.expovariate(1 / mtbf_s)
            if at < length_s:
                changes.append(Change(at, "remove", name))
            at += replaced_after_s
            life += 1
    return sorted(changes)
