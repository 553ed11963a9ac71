"""A folder as a store: on a disk, or on a file system that several machines share."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence

from fairseq_ray_plugin.checkpoints import files
from fairseq_ray_plugin.checkpoints.stores import (
    Entry,
    Exists,
    Missing,
    StoreError,
    copy_file,
    crc32_of,
)

PARTIAL = ".tmp"
"""How the names of files end that are being written: see `files.whole`."""


class FolderStore:
    """Files in a folder, which is made when the first one is put."""

    def __init__(self, folder: str) -> None:
        self.url = os.path.abspath(folder)

    def put(self, local_path: str, name: str, crc32: int | None = None) -> None:
        with self._explained(name), files.whole(self._path(name)) as partial:
            copy_file(local_path, partial)

    def get(self, name: str, local_path: str) -> int:
        with self._explained(name), files.whole(os.path.abspath(local_path)) as partial:
            return copy_file(self._path(name), partial)

    def list(self, folder: str = "") -> Sequence[Entry]:
        entries = []
        with self._explained(folder), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._path(folder)):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    info = entry.stat()
                    if stat.S_ISREG(info.st_mode) and not entry.name.endswith(PARTIAL):
                        entries.append(Entry(entry.name, info.st_size, info.st_mtime))
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        with self._explained(name), contextlib.suppress(FileNotFoundError):
            os.remove(self._path(name))

    def put_bytes(self, name: str, data: bytes, if_absent: bool = False) -> None:
        path = self._path(name)
        partial = f"{path}.{os.getpid()}.{threading.get_ident()}{PARTIAL}"
        with self._explained(name):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(partial, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # a link fails where there is a file, also on NFS; a rename does not
                (os.link if if_absent else os.replace)(partial, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(partial)

    def get_bytes(self, name: str) -> bytes:
        with self._explained(name), open(self._path(name), "rb") as file:
            return file.read()

    def copy(self, source: str, target: str) -> None:
        # no link: stock fairseq writes over checkpoint_last.pt, and would change both
        self.put(self._path(source), target)

    def checksum(self, name: str, by_reading: bool = False) -> int | None:
        with self._explained(name):
            return crc32_of(self._path(name))

    def sweep(self, older_than_s: float) -> int:
        count = 0
        with self._explained(""):
            for folder, _, names in os.walk(self.url):
                for name in names:
                    path = os.path.join(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        age = time.time() - os.path.getmtime(path)
                        if name.endswith(PARTIAL) and age >= older_than_s:
                            os.remove(path)
                            count += 1
        return count

    def _path(self, name: str) -> str:
        return os.path.join(self.url, name)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise Exists(f"{self._path(name)} exists") from None
        except FileNotFoundError:
            raise Missing(f"there is no {self._path(name)}") from None
        except OSError as error:
            raise StoreError(f"{error.filename or self._path(name)}: {error.strerror}") from None
