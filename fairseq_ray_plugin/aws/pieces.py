"""What all pieces have in common: how they are named, marked, looked at, made and removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

TAG = "fairseq-ray-cluster"
"""Marks what was made here; its value is the cluster's name. Nothing without it is removed."""


@dataclass(frozen=True)
class Standing:
    """What there is of a piece.

    Attributes:
        what: its kind and name, for people.
        id: as AWS calls it; empty: nothing of it is there.
        missing: what is to be made yet, in words.
        ours: it was made here, and may be removed.
        values: what it fills in in the cluster file, by the names of placeholders.
    """

    what: str
    id: str = ""
    missing: tuple[str, ...] = ()
    ours: bool = False
    values: Mapping[str, str] = field(default_factory=dict)


class Piece(Protocol):
    """Something in the account that a cluster needs."""

    def look(self) -> Standing:
        """What is there, without changing anything."""

    def make(self) -> None:
        """What is missing has been made."""

    def remove(self) -> None:
        """What was made here is gone; nothing happens where nothing is there."""


def tags(name: str) -> list[dict[str, str]]:
    """As most services take them."""
    return [{"Key": TAG, "Value": name}, {"Key": "Name", "Value": name}]


def is_ours(found: Sequence[Mapping[str, Any]] | None, name: str) -> bool:
    """Whether these tags, as AWS has them, are those of the cluster of this name."""
    return any(tag["Key"] == TAG and tag["Value"] == name for tag in found or ())
