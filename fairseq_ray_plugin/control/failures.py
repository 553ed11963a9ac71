"""What a failure means: whose it is, and whether to try again."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from fairseq_ray_plugin.protocol import Error

RETURNS_WITHIN = 100
"""Updates within which an exception that comes back is the same failure, progress or not."""


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

    TAKEN_OVER = "TAKEN_OVER"
    """The control loop had died, and another goes on."""

    INTERRUPTED = "INTERRUPTED"
    """The driver was told to end."""


@dataclasses.dataclass(frozen=True)
class Failure:
    cause: Cause
    text: str
    """One line: who, and what."""

    node: str | None = None
    """Where it happened."""

    by_peer: bool = False
    """Only the effect of another rank's failure."""

    with_node: bool = False
    """The machine went away, or nobody could reach it: never held against the run."""

    error: Error | None = None
    """What was raised."""

    @property
    def is_exception(self) -> bool:
        """The training code raised it, of itself."""
        return self.error is not None and not self.by_peer

    def is_like(self, other: Failure) -> bool:
        """Whether both are the same exception: type and message, numbers aside."""
        return self._essence() == other._essence()

    def _essence(self) -> tuple[str, str] | None:
        error = self.error
        return (error.kind, _NUMBER.sub("#", error.message)) if error else None

    def report(self) -> str:
        """All there is to say, for people; more than a line."""
        traceback = self.error.traceback if self.error else ""
        text = "\n".join(part for part in (self.text, traceback.strip()) if part)
        return text + advice(f"{text}\n{self.error.message if self.error else ''}")


_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?([eE][+-]?\d+)?")


def first_cause(failures: Sequence[Failure]) -> Failure | None:
    """What went wrong first: a rank that only lost its peers is an effect, not the cause."""
    causes = [f for f in failures if not f.by_peer]
    return next(iter(causes or failures), None)


def describe(cause: Cause, failure: Failure | None) -> str:
    """One line for people; a failure says more than what it led to."""
    return f"{failure.cause.value}: {failure.text}" if failure is not None else cause.value


@dataclasses.dataclass(frozen=True)
class Strikes:
    """Failures that count, oldest first, each with the update before it."""

    failures: tuple[tuple[int, Failure], ...] = ()
    """Since an update was last completed."""

    raised: tuple[tuple[int, Failure], ...] = ()
    """Exceptions of the last RETURNS_WITHIN updates."""

    def after(self, update: int) -> Strikes:
        """An update has been completed: one that was not completed before clears the record."""
        if not self.failures and not self.raised:
            return self
        advanced = self.failures and update > self.failures[0][0]
        recent = tuple(r for r in self.raised if update <= r[0] + RETURNS_WITHIN)
        if not advanced and len(recent) == len(self.raised):
            return self
        return Strikes(() if advanced else self.failures, recent)

    def add(self, update: int, failure: Failure) -> Strikes:
        if failure.with_node:
            return self
        added = ((update, failure),)
        raised = self.raised + added if failure.is_exception else self.raised
        return Strikes(self.failures + added, raised)

    def count(self, cause: Cause) -> int:
        return sum(f.cause is cause for _, f in self.failures)

    def _raised(self) -> list[tuple[int, Failure]]:
        """The last exception, each time that it came, and others without progress in between."""
        return [r for r in self.raised if r in self.failures or r[1].is_like(self.raised[-1][1])]

    def raised_again_on(self, node: str) -> bool:
        """Whether an exception came back, and never anywhere but on `node`."""
        raised = self._raised()
        return len(raised) >= 2 and {node} == {f.node for _, f in raised}

    def verdict(self, max_failures: int, other_nodes: bool) -> str | None:
        """Why the run must end, or None where another try may help.

        Args:
            other_nodes: training could go on without the node that raised an exception twice.
        """
        if not self.failures:
            return None
        raised = self._raised()
        # a second try, and a third on other nodes: a broken GPU raises exceptions, too
        nodes = {f.node for _, f in raised}
        tries = 3 if other_nodes and len(nodes) == 1 and None not in nodes else 2
        if len(raised) >= tries:
            first = raised[0][1]
            updates = " and ".join(str(update) for update in sorted({u for u, _ in raised}))
            return (
                f"training failed {len(raised)} times, after update {updates}; the first time, "
                f"{first.report()}"
            )
        update, first = self.failures[0]
        last = self.failures[-1][1]
        if self.count(last.cause) >= max_failures:
            return (
                f"{self.count(last.cause)} failures in a row after update {update} "
                f"(--ray-max-failures {max_failures}); the first: {first.cause.value}: "
                f"{first.report()}"
            )
        return None


_ADVICE = (
    (
        ("IndexError: index out of range in self",),
        "the data may have numbers that its dictionary does not: binarize it with the dictionary "
        "that is beside it",
    ),
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


def advice(text: str) -> str:
    """What to change, where the text of a failure tells; begins on a line of its own."""
    for signs, text_of_advice in _ADVICE:
        if any(sign in text for sign in signs):
            return f"\n{text_of_advice}"
    return ""
