"""What each checkpoint was when it was written, in a small file beside it: SAVE_DIR/manifests.

So the whole of it can be checked in one pass, and a folder is known without looking into all its
files. A manifest that is missing, damaged, or of a file that has been replaced says nothing; the
checkpoint is then known by what torch keeps in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time

from fairseq_ray_plugin.checkpoints import files, sums
from fairseq_ray_plugin.checkpoints.contents import Facts
from fairseq_ray_plugin.checkpoints.sums import Fingerprint

logger = logging.getLogger(__name__)

FOLDER = "manifests"


@dataclasses.dataclass(frozen=True)
class Manifest:
    file: Fingerprint
    facts: Facts
    time: float
    """When it was written; seconds since 1970."""


def write(path: str, file: Fingerprint, facts: Facts) -> None:
    """There is a manifest of the checkpoint at `path`, just written; others' leavings go.

    Where it cannot be written there is a warning: it is no reason to end training.
    """
    _write(path, Manifest(file, facts, time.time()))


def copy(source: str, target: str) -> None:
    """The checkpoint at `target` has the manifest of `source`, of which it is a copy."""
    manifest = read(source)
    if manifest is not None:
        _write(target, manifest)


def read(path: str) -> Manifest | None:
    """The manifest of the checkpoint at `path`; None: there is none that is this file's.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    try:
        with open(_place(path), encoding="utf-8") as file:
            manifest = _parse(file.read())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    size, tail = sums.end_of_file(path)
    return manifest if (size, tail) == (manifest.file.size, manifest.file.tail) else None


def _place(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, FOLDER, f"{name}.json")


def _write(path: str, manifest: Manifest) -> None:
    place = _place(path)
    try:
        with files.whole(place) as partial, open(partial, "w", encoding="utf-8") as file:
            file.write(_text(manifest))
        _remove_useless(os.path.dirname(place))
    except OSError as error:
        logger.warning("no manifest of %s: %s", path, error)


def _remove_useless(folder: str) -> None:
    """Those of checkpoints that are gone."""
    there = {f"{name}.json" for name in os.listdir(os.path.dirname(folder) or ".")}
    for name in os.listdir(folder):
        if name.endswith(".json") and name not in there:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))


def _text(manifest: Manifest) -> str:
    values = {
        "size": manifest.file.size,
        "crc32": f"{manifest.file.crc32:08x}",
        "tail": f"{manifest.file.tail:08x}",
        **dataclasses.asdict(manifest.facts),
        "time": manifest.time,
    }
    return json.dumps(values | {"sum": _sum(values)}, indent=1) + "\n"


def _sum(values: dict[str, object]) -> str:
    """A bit that is flipped here must not condemn a whole checkpoint."""
    return f"{sums.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _parse(text: str) -> Manifest:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise TypeError("a manifest that is something else")
    if values.pop("sum") != _sum(values):
        raise ValueError("a manifest that is damaged")
    file = Fingerprint(values["size"], int(values["crc32"], 16), int(values["tail"], 16))
    facts = {field.name: values[field.name] for field in dataclasses.fields(Facts)}
    return Manifest(file, Facts(**facts), values["time"])
