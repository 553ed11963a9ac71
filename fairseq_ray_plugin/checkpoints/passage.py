"""A local folder through which checkpoints go to a store.

fairseq decides by names in a folder: what a checkpoint is called, what is copied to
`checkpoint_best.pt` and `checkpoint_last.pt`, and which of those that are there are removed
(`--keep-*`). So the folder has a file for each checkpoint in the store, but an empty one; fairseq
saves there as ever; then what is not empty goes to the store and becomes empty, and what is gone
from the folder is removed from the store. The disk holds one state at a time.

    passage.fill()            # once
    passage.flush()           # before each save: what could not be sent goes first
    fairseq's save_checkpoint(...)
    passage.flush()
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Mapping
from typing import Any

from fairseq_ray_plugin.checkpoints import files
from fairseq_ray_plugin.checkpoints.published import publish, publish_copy, withdraw
from fairseq_ray_plugin.checkpoints.stores import Store, Unsupported

SUFFIX = ".pt"


def _nothing(path: str) -> Mapping[str, Any]:
    return {}


class Passage:
    """One folder, one store, one writer."""

    def __init__(
        self,
        store: Store,
        folder: str,
        facts_of: Callable[[str], Mapping[str, Any]] = _nothing,
    ) -> None:
        """
        Args:
            folder: private to this run; it is made.
            facts_of: what the manifest of a checkpoint is to say, given its local path.
        """
        self._store, self._folder, self._facts_of = store, folder, facts_of
        self._in_store: set[str] = set()

    def fill(self) -> None:
        """The folder has the names that the store has, and nothing else.

        Raises:
            StoreError: the store could not be asked.
        """
        names = {entry.name for entry in self._store.list() if entry.name.endswith(SUFFIX)}
        os.makedirs(self._folder, exist_ok=True)
        for name in set(os.listdir(self._folder)) - names:  # of a run that was killed
            os.remove(self._path(name))
        for name in names:
            self._make_empty(name)
        self._in_store = names

    def flush(self) -> None:
        """The store has what the folder has, and the folder is empty files again.

        What is new is there before what has gone is removed. Where it raises, flush once more, and
        before another state is saved, or the folder would hold two.

        Raises:
            StoreError: the store did not take it. What it has not is still in the folder.
        """
        for same in self._contents():
            self._send(same)
        for name in sorted(self._in_store - self._names()):
            withdraw(self._store, name)
            self._in_store.discard(name)

    @property
    def waiting(self) -> int:
        """Checkpoints that are in the folder alone."""
        return len(self._with_content())

    def link(self, source: str, target: str) -> None:
        """A further name for a file of the folder, which takes no room: for fairseq's copies.

        fairseq replaces files by renaming, so that one name never changes another's content.
        """
        with files.whole(target) as partial:
            os.link(source, partial)

    def _contents(self) -> list[list[str]]:
        """The names of the files with content, those with the same content together."""
        groups: list[list[str]] = []
        for name in self._with_content():
            path = self._path(name)
            for group in groups:
                other = self._path(group[0])
                if os.path.samefile(path, other) or filecmp.cmp(path, other, shallow=False):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups

    def _with_content(self) -> list[str]:
        names = (name for name in self._names() if os.path.getsize(self._path(name)) > 0)
        return sorted(names, key=self._age)

    def _send(self, names: list[str]) -> None:
        """Once over the network, then copied there; the oldest name, which fairseq wrote, first."""
        first, *others = names
        path = self._path(first)
        manifest = publish(self._store, path, first, self._facts_of(path))
        for name in others:
            try:
                publish_copy(self._store, first, name, manifest)
            except Unsupported:
                publish(self._store, path, name, manifest)
        # only now: where it fails half-way, what has been sent is sent once more, under all names
        for name in names:
            self._make_empty(name)
            self._in_store.add(name)

    def _make_empty(self, name: str) -> None:
        """A new file: the old one may have other names."""
        with files.whole(self._path(name)) as partial, open(partial, "wb"):
            pass

    def _names(self) -> set[str]:
        return {name for name in os.listdir(self._folder) if name.endswith(SUFFIX)}

    def _age(self, name: str) -> tuple[int, str]:
        return os.stat(self._path(name)).st_mtime_ns, name

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
