"""Which nodes are of use: one that fails while others do not is left out, longer each time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

HOUR_S = 3600.0


SUSPECT_AFTER = 3
"""Failures of a node within an hour before it is left out; twice as many if another has one."""


FIRST_COOL_DOWN_S = 60.0
"""How long a suspect is left out; twice as long each further time, up to an hour."""


@dataclasses.dataclass(frozen=True)
class NodeRecord:
    """What one node has done to training."""

    failures: tuple[float, ...] = ()
    """When, in seconds; of the last hour."""

    unfit: tuple[str, ...] = ()
    """Why workers did not start there, since one last did."""

    place_after: float = 0.0
    """No worker is placed there before that."""

    num_cool_downs: int = 0
    use_after: float = 0.0
    """No worker is placed or used there before that."""


Nodes = Mapping[str, NodeRecord]


def noted(nodes: Nodes, node: str, now: float) -> Nodes:
    """A failure happened on `node`."""
    record = nodes.get(node, NodeRecord())
    recent = tuple(time for time in record.failures if now - time < HOUR_S)
    return {**nodes, node: dataclasses.replace(record, failures=(*recent, now))}


def not_started(nodes: Nodes, node: str, reason: str, now: float) -> Nodes:
    """A worker did not start on `node`: wait longer each time before the next one is tried."""
    record = nodes.get(node, NodeRecord())
    unfit = (*record.unfit, reason)
    pause = min(2.0 ** (len(unfit) - 1), HOUR_S)
    return {**nodes, node: dataclasses.replace(record, unfit=unfit, place_after=now + pause)}


def started(nodes: Nodes, node: str) -> Nodes:
    """A worker did start on `node`."""
    record = nodes.get(node)
    if record is None or not record.unfit:
        return nodes
    return {**nodes, node: dataclasses.replace(record, unfit=())}


def dead(nodes: Nodes, node: str) -> Nodes:
    """`node` never comes back: a machine that does has another name."""
    record = dataclasses.replace(nodes.get(node, NodeRecord()), unfit=(), place_after=math.inf)
    return {**nodes, node: record}


def is_suspect(nodes: Nodes, node: str, now: float) -> bool:
    """Whether `node` fails again and again while the others do not."""
    count = {
        name: sum(now - time < HOUR_S for time in record.failures) for name, record in nodes.items()
    }
    others = max((n for name, n in count.items() if name != node), default=0)
    return count.get(node, 0) >= SUSPECT_AFTER * (1 + others)


def left_out(nodes: Nodes, node: str, now: float) -> Nodes:
    """`node` is of no use for a while."""
    record = nodes.get(node, NodeRecord())
    pause = min(FIRST_COOL_DOWN_S * 2.0**record.num_cool_downs, HOUR_S)
    record = dataclasses.replace(
        record, failures=(), num_cool_downs=record.num_cool_downs + 1, use_after=now + pause
    )
    return {**nodes, node: record}


def is_usable(nodes: Nodes, node: str, now: float) -> bool:
    """Whether a worker there may run a rank."""
    return node not in nodes or now >= nodes[node].use_after


def has_place(nodes: Nodes, node: str, now: float) -> bool:
    """Whether a worker may be placed there."""
    return is_usable(nodes, node, now) and (node not in nodes or now >= nodes[node].place_after)
