"""A state becomes a checkpoint's file, of which a manifest tells that it is whole."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import torch

from fairseq_ray_plugin.checkpoints import contents, files, manifests, sums
from fairseq_ray_plugin.checkpoints.sums import Fingerprint


def write(state: dict[str, Any], path: str) -> None:
    """The state is on disk at `path`, whole or not at all; OSError and torch's errors pass."""
    with files.whole(path, durable=True) as partial, open(partial, "wb") as file:
        fingerprint = save(state, file)
    describe(state, path, fingerprint)


def save(state: dict[str, Any], file: BinaryIO) -> Fingerprint:
    """The state is in the open file, and on disk.

    Once: what would be appended after an error cannot be read.
    """
    summing = sums.Summing(file)
    torch.save(state, summing)
    file.flush()
    os.fsync(file.fileno())
    return summing.fingerprint


def describe(state: dict[str, Any], path: str, fingerprint: Fingerprint) -> None:
    """The checkpoint that has just been written has a manifest."""
    try:
        facts = contents.facts(state)
    except contents.NoCheckpoint:  # fairseq's crash.pt
        return
    manifests.write(path, fingerprint, facts)


def put_by(state: dict[str, Any], path: str) -> None:
    """The state is in a file that need not outlive the machine."""
    with files.whole(path) as partial:
        torch.save(state, partial)
