"""The checkpoints in an object store, as `catalog` looks at them: one is fetched at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

from fairseq_ray_plugin.checkpoints import archive, contents, published, stores
from fairseq_ray_plugin.checkpoints.catalog import SUFFIX, Entry
from fairseq_ray_plugin.checkpoints.contents import Facts, Summary
from fairseq_ray_plugin.checkpoints.stores import Missing, Store


class Stored:
    """Of a save dir that is a URL.

    What the store does not give for now (`stores.Unreachable`), or not to us, says nothing of a
    checkpoint: such errors pass through every method.

    Args:
        folder: takes one checkpoint at a time; private to this process.
    """

    def __init__(self, url: str, folder: str) -> None:
        self.name = stores.shown(url)
        self._store: Store = stores.open_store(url)
        self._folder = folder
        self._manifests: dict[str, published.Facts] = {}
        self._fetched = ""
        self._is_proven = False

    def entries(self) -> list[Entry]:
        """What may be a checkpoint, by name."""
        self._manifests = {one.name: one.facts for one in published.published(self._store)}
        found = [entry for entry in self._store.list() if entry.name.endswith(SUFFIX)]
        return [
            Entry(entry.name, f"{self.name}/{entry.name}", entry.size, entry.time)
            for entry in sorted(found, key=lambda entry: entry.name)
        ]

    def facts(self, entry: Entry) -> Facts:
        """As its manifest says; without one, it is fetched and looked into."""
        known = facts_of(self._manifests.get(entry.name, {}))
        return known or contents.summary(self.local(entry))

    def summary(self, entry: Entry) -> Summary:
        return contents.summary(self.local(entry))

    def verify(self, entry: Entry) -> None:
        """Its content is what was written; one without a manifest has torch's checksums."""
        path = self.local(entry)
        if not self._is_proven:
            archive.check(path)

    def local(self, entry: Entry) -> str:
        """The path at which its content is, until that of another one is asked for.

        Raises:
            Damaged: it is not what was put.
            FileNotFoundError: it is gone.
        """
        return self.fetch(entry.name)

    def fetch(self, name: str) -> str:
        """As `local`, of a checkpoint by its name."""
        path = os.path.join(self._folder, name)
        if self._fetched != name:
            self.clear()
            os.makedirs(self._folder, exist_ok=True)
            try:
                manifest = published.fetch(self._store, name, self._folder)
            except Missing as error:
                raise FileNotFoundError(str(error)) from error
            self._fetched, self._is_proven = name, manifest is not None
        return path

    def clear(self) -> None:
        """Nothing is on the disk."""
        if self._fetched:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self._folder, self._fetched))
            self._fetched = ""


def facts_of(manifest: published.Facts) -> Facts | None:
    """Of which moment a checkpoint is, as its manifest says; None: it does not."""
    names = [field.name for field in dataclasses.fields(Facts)]
    values: dict[str, Any] = {name: manifest[name] for name in names if name in manifest}
    if type(values.get("updates")) is not int or type(values.get("epoch")) is not int:
        return None
    return Facts(**values)
