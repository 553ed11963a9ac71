"""Files that are whole: writing them, telling them, and the newest checkpoint that is."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections.abc import Iterator

logger = logging.getLogger(__name__)


def newest_whole(path: str) -> str | None:
    """`path`, or where it is torn the newest whole checkpoint beside it; None: no such file."""
    if not os.path.isfile(path):
        return None
    if _is_whole(path):
        return path
    folder = os.path.dirname(path)
    others = [entry.path for entry in os.scandir(folder) if entry.name.endswith(".pt")]
    whole = [other for other in others if "crash" not in other and _is_whole(other)]
    newest = max(whole, key=os.path.getmtime, default=None)
    if newest is None:
        raise ValueError(f"checkpoint {path} is cut short, and no other one is beside it")
    logger.warning(f"checkpoint {path} is cut short: going on from {newest}")
    return newest


def _is_whole(path: str) -> bool:
    """Whether nothing is missing from a file's end; its directory is the last thing written."""
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":  # before torch 1.6: a plain pickle, which cannot tell
            return True
    return zipfile.is_zipfile(path)


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """A file appears at `path` whole or not at all: write to the path that this yields.

    What was there before stays until then. The other path is `PATH.PID.tmp`: whoever was killed at
    it may have left its own.
    """
    partial = f"{path}.{os.getpid()}.tmp"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
