"""Claims on a prefix of an object store: small objects, as files are in a folder (`claim`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fairseq_ray_plugin.checkpoints.stores import Exists, Missing, Store, StoreError


class InStore:
    """Claims in a folder of a store; what the store refuses is an OSError, as a disk's would be."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def names(self) -> list[str]:
        with _explained():
            return [entry.name for entry in self._store.list(self._folder)]

    def read(self, name: str) -> bytes | None:
        with _explained():
            try:
                return self._store.get_bytes(self._name(name))
            except Missing:
                return None

    def create(self, name: str, content: bytes) -> bool:
        with _explained():
            try:
                self._store.put_bytes(self._name(name), content, if_absent=True)
            except Exists:
                return False
            return True

    def replace(self, name: str, content: bytes) -> None:
        with _explained():
            self._store.put_bytes(self._name(name), content)

    def remove(self, name: str) -> None:
        with _explained():
            self._store.delete(self._name(name))

    def _name(self, name: str) -> str:
        return f"{self._folder}/{name}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise OSError(str(error)) from error
