"""Checkpoints in a store: each exists whole or not at all.

A checkpoint is an object by fairseq's own name, which every tool can fetch and stock fairseq loads,
and a manifest `manifests/NAME.json` that says what it is, with its size and CRC32. The object is
put first and the manifest last: who finds a manifest finds the object.

A name that is put once more (`checkpoint_last.pt`) has a manifest already, and the two cannot be
changed in one stroke. So the manifest first says that the object is the old one *or* the new one
(`otherwise`), then the object is put, which every store does in one stroke, then the manifest says
the new one. Whenever the writer dies, and whenever a reader looks, the object is what its manifest
says; if it is not, it was damaged. (Objects under unique names, named by the manifests, would need
no such step, but nobody would find checkpoint_best.pt in the bucket, and what is not named any more
would have to be found and counted.) It takes one writer a prefix; readers may be many.

A manifest is removed before its object. An object without a manifest was put by somebody else, or
its writer died before it could prove it: it may be whole, but only its own content can tell.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_ray_plugin.checkpoints import files
from fairseq_ray_plugin.checkpoints.stores import (
    Damaged,
    Entry,
    Missing,
    Store,
    crc32_of,
    join,
)

MANIFESTS = "manifests"
OTHERWISE = "otherwise"
READERS = 16
"""Manifests read at a time: one takes some 20 ms of waiting."""

Facts = Mapping[str, Any]
"""Of a checkpoint: `size` and `crc32`, and what its writer says (update, loss, ...)."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that a store has whole."""

    name: str
    size: int
    """In bytes."""
    time: float
    """When it was put, in seconds since 1970; 0: the store does not say."""
    facts: Facts


def publish(store: Store, local_path: str, name: str, facts: Facts) -> Facts:
    """Puts a file as a checkpoint that is found whole or not at all; returns its manifest.

    Args:
        facts: what the manifest says besides size and CRC32; a `crc32` in it is believed.

    Raises:
        StoreError: it could not be put; what was there before is still found, if it is there.
    """
    size = os.path.getsize(local_path)
    crc32 = facts["crc32"] if "crc32" in facts else crc32_of(local_path)
    manifest = {**facts, "size": size, "crc32": crc32}
    _exchange(store, name, manifest, lambda: store.put(local_path, name, crc32))
    return manifest


def publish_copy(store: Store, source: str, name: str, manifest: Facts) -> None:
    """A published checkpoint under another name, too; the store copies it.

    Args:
        manifest: the source's.

    Raises:
        Unsupported: the store cannot; `publish` it once more.
    """
    _exchange(store, name, manifest, lambda: _copy(store, source, name, manifest))


def withdraw(store: Store, name: str) -> None:
    """The checkpoint is gone."""
    store.delete(_manifest_of(name))
    store.delete(name)


def fetch(store: Store, name: str, folder: str) -> Facts | None:
    """The checkpoint is in the folder, and is what its manifest says; returns that.

    None where there is no manifest: what was fetched is what the store has, but who says that it
    was whole there?

    Raises:
        Damaged: it is not what was put; it is not in the folder then.
        Missing: the store does not have it.
    """
    manifest = read_manifest(store, name)
    with files.whole(os.path.join(os.path.abspath(folder), name)) as partial:
        while True:
            crc32 = store.get(name, partial)
            if manifest is None:
                return None
            if (facts := _fitting(manifest, os.path.getsize(partial), crc32)) is not None:
                return facts
            before, manifest = manifest, read_manifest(store, name)
            if manifest == before:
                raise Damaged(
                    f"{join(store.url, name)} is not what its manifest says: it was damaged in the "
                    "store, or somebody else has put it there"
                )
            # it was being replaced while it was fetched


def published(store: Store) -> list[Published]:
    """All checkpoints that have a manifest and that it fits, in the order of their names.

    Only sizes are compared; `fetch` compares contents.
    """
    manifests = {entry.name for entry in store.list(MANIFESTS)}
    found = [entry for entry in store.list() if entry.name + ".json" in manifests]
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        return [one for one in readers.map(lambda entry: _published(store, entry), found) if one]


def read_manifest(store: Store, name: str) -> Facts | None:
    """The manifest of a checkpoint; None: there is none, or it is none."""
    try:
        manifest = json.loads(store.get_bytes(_manifest_of(name)))
    except (Missing, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _published(store: Store, entry: Entry) -> Published | None:
    manifest = read_manifest(store, entry.name)
    if manifest is None:
        return None
    fitting = [facts for facts in _candidates(manifest) if facts.get("size") == entry.size]
    if len(fitting) > 1:  # its writer died, or is at it: rare enough to ask which it is
        crc32 = store.checksum(entry.name, by_reading=True)
        fitting = [facts for facts in fitting if facts.get("crc32") == crc32]
    return Published(entry.name, entry.size, entry.time, fitting[0]) if fitting else None


def _exchange(store: Store, name: str, manifest: Facts, put: Callable[[], None]) -> None:
    before = read_manifest(store, name)
    if before is not None and manifest not in (known := list(_candidates(before))):
        both = {**known[0], OTHERWISE: [*known[1:], manifest]}
        store.put_bytes(_manifest_of(name), json.dumps(both).encode())
    put()
    store.put_bytes(_manifest_of(name), json.dumps(manifest).encode())


def _copy(store: Store, source: str, name: str, manifest: Facts) -> None:
    store.copy(source, name)
    if store.checksum(name) not in (None, manifest["crc32"]):
        raise Damaged(f"{join(store.url, name)}: the store made another thing of {source}")


def _candidates(manifest: Facts) -> Iterator[Facts]:
    """What the object may be: one thing, but while it is being replaced."""
    yield {key: value for key, value in manifest.items() if key != OTHERWISE}
    yield from manifest.get(OTHERWISE, ())


def _fitting(manifest: Facts, size: int, crc32: int) -> Facts | None:
    for facts in _candidates(manifest):
        if (facts.get("size"), facts.get("crc32")) == (size, crc32):
            return facts
    return None


def _manifest_of(name: str) -> str:
    return f"{MANIFESTS}/{name}.json"
