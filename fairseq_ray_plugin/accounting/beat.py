"""How a run gets on at this moment, as its ranks say: what no journal has yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """This moment."""

    generation: int
    world_size: int
    """Ranks that train, or come to rest; 0: there are none."""

    update: int
    updates_per_s: float
    """0: training stands still."""

    samples_per_s: float | None
    """None: training has not said how many are in an update."""

    loss: float | None
    strides: tuple[float, float] | None
    """What a mini-batch takes the median rank and the slowest, without waits; seconds."""

    slow: Mapping[tuple[str, int], float]
    """Node and rank that the others wait for -> its mini-batch's seconds by those of the median."""

    num_left_out: int
    """Nodes."""

    recovery_s: float | None
    """What the last stop cost, up to the end of the next update; None: there was none."""
