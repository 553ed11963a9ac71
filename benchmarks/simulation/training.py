"""Training in a simulated generation: which update its ranks have completed at what time."""

from __future__ import annotations

import dataclasses
import math

from fairseq_ray_plugin.protocol import Start
from simulation.ledger import Use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What training takes, in seconds."""

    name: str
    update_s: float
    """An update with as many ranks as it has mini-batches; with fewer it takes longer."""

    restart_s: float
    """From a generation's start to the beginning of its first update."""

    save_s: float
    """Writing the state."""

    import_s: float = 8.0
    """A worker's imports; with chance up to half as much again."""

    gone_s: float = 10.0
    """Until the cluster says that a node is dead."""

    checkpoint_every_s: float = 600.0


SMALL = Costs(name="small", update_s=0.08, restart_s=0.35, save_s=0.05)
"""A killed process costs 0.49 s in all, as measured (docs/performance.md); its parts are set."""

ROBERTA = Costs(name="RoBERTa base on CPUs", update_s=2.0, restart_s=15.3, save_s=1.4)
"""A killed process costs 18.7 s in all, where the ranks share two cores while they restart."""


class Generation:
    """All its ranks complete each update at the same time."""

    def __init__(self, start: Start, costs: Costs, max_ranks: int) -> None:
        self.number, self.ranks, self.keepers = start.generation, start.ranks, start.keepers
        self.members = frozenset(self.ranks)
        self.update_s = costs.update_s * max_ranks / min(len(self.ranks), max_ranks)
        self.pause_use = Use.LOSS
        """What its slots do while it does not train."""

        self.is_loaded = self.has_advanced = self.is_stopped = False
        self.misses_rank = False
        self.hold_asked: list[str] = []
        """Who is to come to rest after this update."""

        self.due: set[str] = set()
        """Snapshot, checkpoint: to be written after this update."""

        self.completed = start.source.update if start.source else 0
        """Updates, when it last began to compute; all there are, while it does not."""

        self.began = math.nan
        self.num_pauses = 0

    @property
    def trains(self) -> bool:
        return not math.isnan(self.began)

    def updates(self, now: float) -> int:
        """Completed so far."""
        if not self.trains:
            return self.completed
        return self.completed + math.floor((now - self.began) / self.update_s + 1e-6)

    def boundary_after(self, now: float) -> float:
        """When the update that is under way will be complete."""
        done = self.updates(now) - self.completed
        return self.began + (done + 1) * self.update_s

    def compute(self, now: float) -> None:
        """Training goes on."""
        self.is_loaded = True
        self.began = now

    def pause(self, now: float) -> float:
        """Training does not; returns the seconds of the update under way that are lost."""
        if not self.trains:
            return 0.0
        updates = self.updates(now)
        lost_s = max(0.0, now - self.began - (updates - self.completed) * self.update_s)
        self.completed, self.began = updates, math.nan
        self.num_pauses += 1
        return lost_s
