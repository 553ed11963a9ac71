"""Where the time of the slots went that were there."""

from __future__ import annotations

import enum
from collections import Counter


class Use(enum.Enum):
    """What a slot does at a time; all uses together are the slots that were there."""

    TRAINING = "training"
    REDONE = "updates done again"
    LOSS = "restarts after a loss"
    RESIZE = "restarts to take workers in"
    LEAVING = "restarts to leave a node in time"
    SNAPSHOT = "snapshots and checkpoints"
    PLACING = "no worker yet, or importing"
    LEFT = "on a node that will go"
    READY = "ready, and not taken in"


class Ledger:
    """Slot-seconds by use."""

    def __init__(self) -> None:
        self.spent: Counter[Use] = Counter()
        self.there = 0.0

    def spend(self, seconds: float, num_there: int, uses: list[tuple[Use, int]]) -> None:
        """So many slots were there for a while, and were used as is said.

        Args:
            uses: slots in each use, the most useful first; those beyond `num_there` are room that
                nobody wants, and not counted.
        """
        self.there += num_there * seconds
        left = num_there
        for use, number in uses:
            assert number >= 0
            number = min(number, left)
            self.spent[use] += number * seconds
            left -= number
        assert left == 0, "every slot is used in some way"

    def clear(self) -> None:
        """What was before does not count."""
        self.spent.clear()
        self.there = 0.0

    def redo(self, slot_seconds: float) -> None:
        """What had been trained is lost."""
        self.spent[Use.TRAINING] -= slot_seconds
        self.spent[Use.REDONE] += slot_seconds

    def share(self, use: Use) -> float:
        return self.spent[use] / self.there

    def shares(self) -> dict[str, float]:
        return {use.value: self.share(use) for use in Use}
