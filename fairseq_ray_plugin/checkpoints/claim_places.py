"""Where claims on a save dir are (`claim`): small objects in a folder or an object store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol

from fairseq_ray_plugin.checkpoints import stores
from fairseq_ray_plugin.checkpoints.stores import Exists, Missing, Store, StoreError

FOLDER = "elastic_claim"
"""Of a save dir: where claims are."""


class Place(Protocol):
    """Where the claims on a save dir are: small named objects, in a folder or an object store.

    What one process has done, all others see. Each may raise OSError.
    """

    def names(self) -> list[str]:
        """Of all objects."""

    def read(self, name: str) -> bytes | None:
        """None: there is no such object."""

    def create(self, name: str, content: bytes) -> bool:
        """False: there is one, and it stays as it is."""

    def replace(self, name: str, content: bytes) -> None:
        """The object, which exists, has other content."""

    def remove(self, name: str) -> None:
        """There is no such object any more, if there was one."""


class InFolder:
    """Claims in a folder, on this machine's disk or on a file system that several share."""

    def __init__(self, save_dir: str) -> None:
        self._folder = os.path.join(save_dir, FOLDER)

    def names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        os.makedirs(self._folder, exist_ok=True)
        path = os.path.join(self._folder, name)
        try:
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:  # no room: half a claim would be waited for
            with contextlib.suppress(OSError):
                os.remove(path)
            raise
        return True

    def replace(self, name: str, content: bytes) -> None:
        # in its place: that needs no room on a full disk, and makes no file where there is none
        with open(os.path.join(self._folder, name), "r+b") as file:
            file.write(content)
            file.truncate()

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._folder, name))


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


def place_of(save_dir: str) -> Place:
    """Where the claims on a save dir are.

    Raises:
        stores.StoreError: it is a URL that means nothing here.
    """
    if stores.is_url(save_dir):
        return InStore(stores.open_store(save_dir), FOLDER)
    return InFolder(save_dir)
