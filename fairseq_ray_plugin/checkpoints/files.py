"""Checkpoints in the save dir: which are whole, the newest of those, and a copy made whole."""

from __future__ import annotations

import logging
import os
import shutil
import zipfile

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


def copy_whole(source: str, target: str) -> None:
    """`target` is a copy of `source`, or, where OSError passes through, as it was."""
    partial = f"{target}.tmp"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
