"""What a failure means: whose it is, whether to try again, and which nodes to leave out."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping

HOUR_S = 3600.0

SUSPECT_AFTER = 3
"""Failures of a node within an hour before it is left out; twice as many if another has one."""

FIRST_COOL_DOWN_S = 60.0
"""How long a suspect is left out; twice as long each further time, up to an hour."""


class Cause(enum.Enum):
    """Why a generation stopped."""

    RESIZED = "RESIZED"
    """Workers that were not in the generation are ready."""

    PREEMPTED = "PREEMPTED"
    """A node is to be taken away, and is left in time."""

    LOST = "LOST"
    """A training process, a worker or a node went away."""

    HUNG = "HUNG"
    """There was no progress for too long."""

    FAILED = "FAILED"
    """The training code raised an exception."""

    INTERRUPTED = "INTERRUPTED"
    """The driver was told to end."""


@dataclasses.dataclass(frozen=True)
class Failure:
    cause: Cause
    text: str
    node: str | None = None
    """Where it happened."""

    by_peer: bool = False
    """Only the effect of another rank's failure."""

    with_node: bool = False
    """The machine went away: nobody's fault, and never held against the run."""


def first_cause(failures: tuple[Failure, ...]) -> Failure | None:
    """What went wrong first: a rank that only lost its peers is an effect, not the cause."""
    causes = [f for f in failures if not f.by_peer]
    return next(iter(causes or failures), None)


def describe(cause: Cause | None, failure: Failure | None) -> str:
    """One text for people; a failure says more than what it led to."""
    if failure is not None:
        return f"{failure.cause.value}: {failure.text}"
    return cause.value if cause else ""


@dataclasses.dataclass(frozen=True)
class Strikes:
    """Failures since an update was last completed, oldest first, each with the update before."""

    failures: tuple[tuple[int, Failure], ...] = ()

    def after(self, update: int) -> Strikes:
        """An update has been completed: one that was not completed before clears the record."""
        return Strikes() if self.failures and update > self.failures[0][0] else self

    def add(self, update: int, failure: Failure) -> Strikes:
        if failure.with_node:
            return self
        return Strikes((*self.failures, (update, failure)))

    def count(self, cause: Cause) -> int:
        return sum(f.cause is cause for _, f in self.failures)

    def _raised(self) -> list[Failure]:
        return [f for _, f in self.failures if f.cause is Cause.FAILED and not f.by_peer]

    def raised_again_on(self, node: str) -> bool:
        """Whether an exception came back, and never anywhere but on `node`."""
        raised = self._raised()
        return len(raised) >= 2 and {node} == {f.node for f in raised}

    def verdict(self, max_failures: int, other_nodes: bool) -> str | None:
        """Why the run must end, or None where another try may help.

        Args:
            other_nodes: training could go on without the node that raised an exception twice.
        """
        if not self.failures:
            return None
        update, first = self.failures[0]
        raised = self._raised()
        # a second try, and a third on other nodes: a broken GPU raises exceptions, too
        nodes = {f.node for f in raised}
        tries = 3 if other_nodes and len(nodes) == 1 and None not in nodes else 2
        if len(raised) >= tries:
            times = {2: "twice", 3: "three times"}[len(raised)]
            return f"training failed {times} after update {update}, {first.text}{advice(first)}"
        last = self.failures[-1][1]
        if self.count(last.cause) >= max_failures:
            return (
                f"{self.count(last.cause)} failures in a row after update {update} "
                f"(--ray-max-failures {max_failures}); the first: {describe(None, first)}"
                f"{advice(first)}"
            )
        return None


_ADVICE = (
    (
        ("CUDA out of memory", "OutOfMemoryError"),
        "the GPU's memory is too small: lower --batch-size or --max-tokens (with --fix-batch-size "
        "the update stays the same)",
    ),
    (
        ("lack of memory", "memory monitor", "running low on memory"),
        "the node's memory is too small: lower --num-workers, --batch-size or --max-tokens, or "
        "run fewer workers on a node with --ray-cpus-per-worker",
    ),
)


def advice(failure: Failure) -> str:
    """What to change, where the text of a failure tells; begins on a line of its own."""
    for signs, text in _ADVICE:
        if any(sign in failure.text for sign in signs):
            return f"\n{text}"
    return ""


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
