"""Checkpoints go to an object store: through a folder to which fairseq's own function writes.

Each begins with what the store has and an empty folder: what could not be sent is in memory still,
and is made once more.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

from fairseq_ray_plugin.checkpoints import contents, manifests, published, stored, stores
from fairseq_ray_plugin.checkpoints.contents import Facts
from fairseq_ray_plugin.checkpoints.passage import Passage


class ToStore:
    """A store, and a folder that stands for it.

    Opened in the process that writes, for connections do not survive a fork.

    Args:
        folder: of the worker's own, where one process writes at a time.

    Raises:
        StoreError: the store could not be asked.
    """

    def __init__(self, url: str, folder: str) -> None:
        self.folder, self.shown = folder, stores.shown(url)
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed, or gave up
        self._store = stores.open_store(url)
        self._passage = Passage(self._store, folder, _facts)
        self._passage.fill()

    def path(self, name: str) -> str:
        """In the store, for people and for who goes on from it."""
        return f"{self.shown}/{os.path.basename(name)}"

    def has_newer(self, path: str, facts: Facts) -> bool:
        """Whether a later state of this training has that name in the store."""
        manifest = published.read_manifest(self._store, os.path.basename(path))
        there = stored.facts_of(manifest) if manifest is not None else None
        return there is not None and facts.precedes(there)

    def copy(self, source: str, target: str, overwrite: bool = False) -> bool:
        """A further name for what has just been written: fairseq's copies."""
        ours = manifests.read(source)
        # empty: it has a newer state in the store
        if os.path.getsize(source) and not (ours and self.has_newer(target, ours.facts)):
            self._passage.link(source, target)
            manifests.copy(source, target)
        return True

    def send(self) -> None:
        """The store has what the folder has, and not what has gone from it.

        Raises:
            StoreError: it did not take it.
        """
        self._passage.flush()
        shutil.rmtree(self.folder, ignore_errors=True)


def _facts(path: str) -> dict[str, Any]:
    """What the manifest in the store says of the checkpoint at `path`."""
    known = manifests.read(path)
    if known is not None:
        return {**dataclasses.asdict(known.facts), "crc32": known.file.crc32, "time": known.time}
    found = contents.summary(path)
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(Facts)}
