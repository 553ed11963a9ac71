"""The checkpoints in a save dir, as people read about them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from fairseq_ray_plugin.checkpoints.archive import Opaque
from fairseq_ray_plugin.checkpoints.catalog import Entry, Place
from fairseq_ray_plugin.checkpoints.contents import Facts, NoCheckpoint
from fairseq_ray_plugin.checkpoints.sums import Damaged

COLUMNS = ("checkpoint", "updates", "epoch", "MB", "workers", "loss", "written", "state")


@dataclasses.dataclass(frozen=True)
class Row:
    """What is to be said of a checkpoint."""

    entry: Entry
    facts: Facts | None
    """None: it cannot be looked into."""

    damage: str | None
    """None: it is whole, or nothing tells."""

    is_opaque: bool = False


def rows(place: Place) -> list[Row]:
    """The checkpoints in a place, each read from begin to end; the newest last."""
    found = [row for entry in place.entries() if (row := _row(place, entry)) is not None]
    return sorted(found, key=lambda row: row.facts.updates if row.facts is not None else -1)


def _row(place: Place, entry: Entry) -> Row | None:
    facts = None
    try:
        facts = place.facts(entry)
        place.verify(entry)
    except NoCheckpoint:
        return None
    except Opaque:
        return Row(entry, None, None, is_opaque=True)
    except OSError as error:
        return Row(entry, facts, error.strerror or str(error))
    except Damaged as error:
        return Row(entry, facts, str(error)) if facts or entry.is_named_so else None
    return Row(entry, facts, None)


def lines(some: Sequence[Row]) -> list[str]:
    """A table with a heading."""
    cells = [COLUMNS, *map(_cells, some)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[-1] = 0
    return [
        "  ".join(
            cell.ljust(width) if place in (0, len(COLUMNS) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _cells(row: Row) -> tuple[str, ...]:
    facts = row.facts
    if row.damage is not None:
        state = f"damaged: {row.damage}"
    else:
        state = "cannot be looked into (before torch 1.6)" if row.is_opaque else "whole"
    known = ("?", "?", "?", "?")
    if facts is not None:
        loss = "" if facts.loss is None else f"{facts.loss:g}"
        workers = "" if facts.world_size is None else str(facts.world_size)
        known = (str(facts.updates), str(facts.epoch), workers, loss)
    updates, epoch, workers, loss = known
    written = datetime.datetime.fromtimestamp(row.entry.time).strftime("%Y-%m-%d %H:%M:%S")
    size = f"{row.entry.size / 1e6:.1f}"
    return (row.entry.name, updates, epoch, size, workers, loss, written, state)
