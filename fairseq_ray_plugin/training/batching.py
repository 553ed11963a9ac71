"""Which mini-batches each rank gets, and what a position in an epoch means.

Mini-batches are made from the whole data set, before any world size is known, so their order in
an epoch is a function of the script alone. A position is the number of them already used. What is
left is cut into blocks of `group`; one block is one update, and rank r of W gets `block[r::W]`.
This is fairseq's own order where it divides (fairseq/data/iterators.py, ShardedIterator).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

Batch = TypeVar("Batch")

NUM_SAMPLED = 1000
"""Mini-batches, evenly spaced, that a fingerprint is taken from: all would take too long."""


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient, rounded up, in whole numbers of any size."""
    return -(-numerator // denominator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one epoch's mini-batches are dealt to the ranks."""

    world_size: int
    group: int
    """Mini-batches in one update, all ranks together."""

    fixed: bool
    """The group is the user's (--fix-batch-size), not the world size times --update-freq.

    Then every update is filled up with empty mini-batches to the same length on every rank, where
    there are several; otherwise only the epoch's end is, exactly as fairseq does.
    """

    skip_remainder: bool = False
    """Leave out an incomplete last update (--skip-remainder-batch)."""

    @property
    def per_rank(self) -> int:
        """Mini-batches of one update on one rank, empty ones included."""
        return ceil_div(self.group, self.world_size)

    @property
    def _fills_up(self) -> bool:
        return self.fixed and self.world_size > 1

    def end(self, num_batches: int, position: int = 0) -> int:
        """The position at which an epoch that goes on from `position` ends."""
        if not self.skip_remainder:
            return num_batches
        # fairseq drops each rank's last mini-batch, then what does not fill an update; a fixed
        # batch follows what it does with one rank, so that the world size does not matter
        ranks = 1 if self.fixed else self.world_size
        rounds = ceil_div(num_batches - position, ranks) - 1
        updates = max(0, rounds) // (self.group // ranks)
        return position + updates * self.group

    def shard(
        self, batches: Sequence[Batch], rank: int, position: int, empty: Batch
    ) -> list[Batch]:
        """The mini-batches that `rank` gets from `position` to the end of the epoch, in order.

        Every rank gets equally many: `empty` stands where there are not enough.
        """
        end = self.end(len(batches), position)
        left = max(0, end - position)
        if self._fills_up:
            length = ceil_div(left, self.group) * self.per_rank
        else:
            length = ceil_div(left, self.world_size)
        mine = [empty] * length
        for place in range(self.per_rank):
            offset = rank + place * self.world_size
            if offset < self.group:
                column = batches[position + offset : end : self.group]
                mine[place : place + len(column) * self.per_rank : self.per_rank] = column
        return mine

    def advance(self, num_batches: int, position: int, taken: int) -> int:
        """The position after each rank took `taken` mini-batches, empty ones included."""
        if self._fills_up:
            position += taken // self.per_rank * self.group
        else:
            position += taken * self.world_size
        return min(position, num_batches)

    def number(self, rank: int, position: int, place: int) -> int:
        """Which of the epoch's mini-batches is at `place` of those that `shard` returned."""
        block, turn = divmod(place, self.per_rank)
        return position + block * self.group + turn * self.world_size + rank


def fingerprint(batches: Sequence[Sequence[Any]], shuffled_by: str) -> str:
    """A short text that another order, or other mini-batches, of an epoch do not have.

    Args:
        batches: before they are shuffled.
        shuffled_by: what decides how they are.
    """
    sampled = [*batches[:: max(1, len(batches) // NUM_SAMPLED)], *batches[-1:]]
    samples = ";".join(",".join(map(str, batch)) for batch in sampled)
    return f"{zlib.crc32(f'{shuffled_by};{len(batches)};{samples}'.encode()):08x}"
