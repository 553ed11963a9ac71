"""What a rank does, and what its time has gone to."""

from __future__ import annotations

import dataclasses
import enum


class Activity(enum.Enum):
    """What a rank does."""

    LOADING = "loading"
    """Reading data and checkpoints, up to its first update, or an epoch's."""

    TRAINING = "training"
    VALIDATING = "validating"
    SAVING = "saving a checkpoint"


@dataclasses.dataclass(frozen=True)
class Logged:
    """What training last logged of itself."""

    update: int
    loss: float | None
    lr: float | None
    samples: float | None = None
    """In an update."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """What mini-batches took a rank itself, without its waits for others, since it last said so."""

    batches: int
    computing: float
    """Forward and backward of all of them; seconds."""

    data: float
    """Waiting for them; seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """What a rank's time has gone to since it was forked; seconds."""

    loading: float = 0.0
    """Up to the first batch of its first update."""

    training: float = 0.0
    data: float = 0.0
    """Waiting for the next batch."""

    validating: float = 0.0
    saving: float = 0.0
    in_flight: float = 0.0
    """What it does now, and has not come to the end of."""

    logged: Logged | None = None

    def total(self) -> float:
        """Since it was forked."""
        done = self.loading + self.training + self.data + self.validating + self.saving
        return done + self.in_flight
