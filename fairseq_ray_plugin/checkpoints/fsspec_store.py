"""Any store that fsspec reaches (gs://, az://, ...) by the same verbs."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from fairseq_ray_plugin.checkpoints import files
from fairseq_ray_plugin.checkpoints.stores import (
    BLOCK,
    Damaged,
    Entry,
    Exists,
    Missing,
    StoreError,
    Unreachable,
    Unsupported,
    crc32_of,
    join,
    without_secrets,
)


class FsspecStore:
    """What fsspec does there, checked by sizes: checksums are our manifests' alone."""

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url).rstrip("/")
        scheme = url.partition("://")[0]
        try:
            import fsspec
        except ImportError:
            raise StoreError(
                f"{self.url} needs fsspec and its package for {scheme}://: "
                "pip install 'fairseq_ray_plugin[stores]' on every node"
            ) from None
        with self._explained(""):
            try:
                self._fs: Any
                self._fs, self._root = fsspec.core.url_to_fs(url)
            except ImportError as error:
                raise StoreError(f"{self.url} needs a package on every node: {error}") from None
            except ValueError:
                raise StoreError(
                    f"{self.url}: fsspec knows no {scheme}://; give s3://, gs://, az:// or a folder"
                ) from None

    def put(self, local_path: str, name: str, crc32: int | None = None) -> None:
        with self._explained(name):
            self._make_folder(name)
            self._fs.put_file(local_path, self._path(name))
            self._fs.invalidate_cache()
            arrived = self._fs.info(self._path(name))["size"]
        if arrived != os.path.getsize(local_path):
            raise Damaged(f"{join(self.url, name)}: {arrived} bytes have arrived, not all")

    def get(self, name: str, local_path: str) -> int:
        with files.whole(os.path.abspath(local_path)) as partial:
            with self._explained(name):
                self._fs.get_file(self._path(name), partial)
            return crc32_of(partial)

    def list(self, folder: str = "") -> Sequence[Entry]:
        with self._explained(folder):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        entries = [
            Entry(info["name"].rstrip("/").rpartition("/")[2], info["size"], _time(info))
            for info in found
            if info["type"] == "file"
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        with self._explained(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def put_bytes(self, name: str, data: bytes, if_absent: bool = False) -> None:
        with self._explained(name):
            self._make_folder(name)
            if not if_absent:
                self._fs.pipe_file(self._path(name), data)
                return
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except (NotImplementedError, TypeError):  # stores without such a condition
                if self._fs.exists(self._path(name)):
                    raise FileExistsError from None
                self._fs.pipe_file(self._path(name), data)

    def get_bytes(self, name: str) -> bytes:
        with self._explained(name):
            content: bytes = self._fs.cat_file(self._path(name))
            return content

    def copy(self, source: str, target: str) -> None:
        with self._explained(source):
            try:
                self._fs.cp_file(self._path(source), self._path(target))
            except NotImplementedError:
                raise Unsupported(f"{self.url} copies nothing by itself") from None

    def checksum(self, name: str, by_reading: bool = False) -> int | None:
        if not by_reading:
            return None  # some know one, each another kind
        value = 0
        with self._explained(name), self._fs.open(self._path(name), "rb") as file:
            while block := file.read(BLOCK):
                value = zlib.crc32(block, value)
        return value

    def sweep(self, older_than_s: float) -> int:
        return 0  # those that have unfinished puts let them expire

    def _path(self, name: str) -> str:
        return join(self._root, name)

    def _make_folder(self, name: str) -> None:
        self._fs.makedirs(os.path.dirname(self._path(name)), exist_ok=True)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Each file system raises what it likes, and some put tokens into the text."""
        where = join(self.url, name)
        try:
            yield
        except StoreError:
            raise
        except FileExistsError:
            raise Exists(f"{where} exists") from None
        except FileNotFoundError:
            raise Missing(f"there is no {where}") from None
        except PermissionError:
            raise StoreError(f"{where}: denied: see the credentials of this node") from None
        except (ConnectionError, TimeoutError) as error:
            raise Unreachable(f"{where} cannot be reached ({type(error).__name__})") from None
        except Exception as error:
            kind = f"{type(error).__module__}.{type(error).__name__}"
            raise StoreError(f"{where}: {kind} in fsspec's file system: see its settings") from None


def _time(info: dict[str, Any]) -> float:
    """Each file system has its own word for it, and form."""
    for key in ("LastModified", "updated", "last_modified", "mtime", "created"):
        value: Any = info.get(key)
        if isinstance(value, (int, float)):
            return float(value)
        if hasattr(value, "timestamp"):
            return float(value.timestamp())
    return 0.0
