"""The ranks that took longest for their mini-batches, from the journal."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from fairseq_ray_plugin.accounting.story import Line


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowRank:
    """A rank on a node, over all generations."""

    rank: int
    node: str
    num_seen: int
    """How often it was among the slowest, when the journal got a line on progress."""

    seconds: float
    """What a mini-batch took it then, in the mean, without waiting for others."""

    data: float
    """Of these, waiting for data."""

    ratio: float
    """By what it took the median rank, in the mean."""

    num_named: int
    """How often it was named: it had taken over 30% more than the median for a minute."""


def slowest(lines: Iterable[Line]) -> list[SlowRank]:
    """Those that took more than the median rank: who was named, and then the slowest, first."""
    told: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    named: dict[tuple[int, str], int] = defaultdict(int)
    for line in lines:
        if line["kind"] == "slow":
            named[line["rank"], line["node"]] += 1
            strides: Line = {"median": line["median"], "slowest": [line]}
        else:
            strides = line.get("strides") or {}
        for there in strides.get("slowest", ()):
            told[there["rank"], there["node"]].append(_values(there, strides["median"]))
    ranks = [
        SlowRank(
            rank=rank,
            node=node,
            num_seen=len(values),
            seconds=sum(seconds for seconds, _, _ in values) / len(values),
            data=sum(data for _, data, _ in values) / len(values),
            ratio=sum(ratio for _, _, ratio in values) / len(values),
            num_named=named[rank, node],
        )
        for (rank, node), values in told.items()
    ]
    ranks = [there for there in ranks if there.ratio > 1 or there.num_named]
    return sorted(ranks, key=lambda there: (-there.num_named, -there.ratio))


def _values(there: Line, median: float) -> tuple[float, float, float]:
    return there["seconds"], there["data"], there["seconds"] / median if median > 0 else 1.0
