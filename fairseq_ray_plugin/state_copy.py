"""Where a state of training is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class HeldBy:
    """In the memory of a rank at rest."""

    worker: str


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A snapshot: a file in a node's memory, or on its disk where there was no room."""

    node: str
    path: str


@dataclasses.dataclass(frozen=True)
class InSaveDir:
    """A checkpoint."""

    path: str


@dataclasses.dataclass(frozen=True)
class Copy:
    """The state of training after an update, in a place."""

    update: int
    place: HeldBy | InMemory | InSaveDir
