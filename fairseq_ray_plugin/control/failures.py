"""What a failure means: whose it is, and whether to try again."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from fairseq_ray_plugin.faults import Error, Fault

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

    gpu: str = ""
    """And on which GPU, by its UUID, where that is known."""

    crashed: bool = False
    """A process ended by its own doing."""

    by_peer: bool = False
    """Only the effect of another rank's failure."""

    with_node: bool = False
    """The machine went away, or nobody could reach it: never held against the run."""

    error: Error | None = None
    """What was raised."""

    @property
    def may_be_gpus(self) -> bool:
        """A broken GPU fails like this, whatever is trained on it."""
        return self.crashed or (self.error is not None and self.error.fault.is_gpus)

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
        if self.error is not None and self.error.fault in _ADVICE_ON:
            return f"{text}\n{_ADVICE_ON[self.error.fault]}"
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

    def raised_again(self) -> list[Failure]:
        """An exception each time that it came, if the last failure is one and not the first."""
        raised = [failure for _, failure in self._raised()]
        return raised if len(raised) >= 2 and self.failures[-1][1].is_exception else []

    def verdict(self, max_failures: int) -> str | None:
        """Why the run must end after its last failure, or None where another try may help."""
        if not self.failures:
            return None
        if self.raised_again():
            raised = self._raised()
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


_ADVICE_ON = {
    Fault.GPU_MEMORY: "the GPU's memory is too small: lower --batch-size or --max-tokens (with "
    "--fix-batch-size the update stays the same)",
    Fault.GPU_HARDWARE: "the GPU is broken, or has to be reset: see nvidia-smi -q, and Xid in the "
    "kernel's log",
    Fault.NCCL_SYSTEM: "where no rank died, NCCL's last error tells: a full /dev/shm, an interface "
    "that others do not reach (NCCL_SOCKET_IFNAME); NCCL_DEBUG=INFO tells more",
}

_ADVICE = (
    (
        ("IndexError: index out of range in self",),
        "the data may have numbers that its dictionary does not: binarize it with the dictionary "
        "that is beside it",
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
