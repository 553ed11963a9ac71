"""A run's figures as metrics of Ray's, from where Prometheus takes them.

Ray puts `ray_` before each name. What only grows is a counter, and what a second of a slot went to
is in one of its classes: their rates add up to the slots. Every series has a label `run`, the save
dir; others are few, and none has a value for each rank of thousands.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from fairseq_ray_plugin.accounting.live import Live

GAUGES = {
    "world_size": "Ranks that train now; 0: training stands still",
    "generation": "Number of the newest set of ranks",
    "update": "Updates completed",
    "updates_per_second": "Updates in a second, over the last half minute",
    "samples_per_second": "Samples in a second, over the last half minute",
    "loss": "The training loss that was last logged",
    "goodput_ratio": "Training's share of the time of the slots that were there",
    "last_recovery_seconds": "From the last stop to the end of the next update",
    "nodes_left_out": "Nodes that are not used, for training fails there again and again",
    "checkpoint_timestamp_seconds": "When the last checkpoint was written, since 1970",
    "checkpoint_write_seconds": "What writing it took, behind training",
    "checkpoint_size_bytes": "Its size",
    "batch_seconds": "What a mini-batch takes the median rank and the slowest one, without waits",
    "straggler_ratio": "A named slow rank's mini-batch by the median rank's; 0: not any more",
}
COUNTERS = {
    "slot_seconds_total": "What the seconds of slots went to",
    "stops_total": "Generations that were stopped, by cause; HUNG: hangs",
    "checkpoints_total": "Checkpoints written",
    "checkpoint_failures_total": "Times that a state could not be written, or put by in memory",
}
LABELS = {
    "batch_seconds": ("rank",),
    "straggler_ratio": ("node", "rank"),
    "slot_seconds_total": ("spent",),
    "stops_total": ("cause",),
}
PREFIX = "fairseq_ray_"


class Metrics:
    """Sets them, in the process of a run's loop.

    Args:
        run: the save dir.
    """

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._counted: dict[tuple[str, str], float] = {}
        self._slow: set[tuple[str, int]] = set()

    def __call__(self, live: Live) -> None:
        """Show a run as it is now."""
        if not self._gauges:  # not earlier: what Ray may raise then is no reason not to train
            self._make()
        beat, checkpoints = live.beat, live.checkpoints
        self._set("world_size", beat.world_size)
        self._set("generation", beat.generation)
        self._set("update", beat.update)
        self._set("updates_per_second", beat.updates_per_s)
        self._set("samples_per_second", beat.samples_per_s)
        self._set("loss", beat.loss)
        self._set("goodput_ratio", live.goodput)
        self._set("last_recovery_seconds", beat.recovery_s)
        self._set("nodes_left_out", beat.num_left_out)
        self._set("checkpoint_timestamp_seconds", checkpoints.last_at)
        self._set("checkpoint_write_seconds", checkpoints.last_s)
        self._set("checkpoint_size_bytes", checkpoints.last_bytes)
        if beat.strides is not None:
            for which, seconds in zip(("median", "slowest"), beat.strides, strict=True):
                self._set("batch_seconds", seconds, {"rank": which})
        for there in self._slow | set(beat.slow):
            node, rank = there
            labels = {"node": node, "rank": str(rank)}
            self._set("straggler_ratio", beat.slow.get(there, 0.0), labels)
        self._slow = set(beat.slow)
        for spent, seconds in live.spent.items():
            self._count("slot_seconds_total", seconds, {"spent": spent.value})
        for cause, number in live.stops.items():
            self._count("stops_total", number, {"cause": cause})
        self._count("checkpoints_total", checkpoints.num_written)
        self._count("checkpoint_failures_total", checkpoints.num_failures)

    def _make(self) -> None:
        def labels(name: str) -> tuple[str, ...]:
            return ("run", *LABELS.get(name, ()))

        self._gauges = {n: Gauge(PREFIX + n, what, labels(n)) for n, what in GAUGES.items()}
        self._counters = {n: Counter(PREFIX + n, what, labels(n)) for n, what in COUNTERS.items()}

    def _set(self, name: str, value: float | None, labels: Mapping[str, str] | None = None) -> None:
        if value is not None:
            self._gauges[name].set(value, {**self._run, **(labels or {})})

    def _count(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """A counter only grows; an account may take seconds from one class for another, later."""
        key = name, "".join((labels or {}).values())
        more = value - self._counted.get(key, 0.0)
        if more > 0:
            self._counted[key] = value
            self._counters[name].inc(more, {**self._run, **(labels or {})})
