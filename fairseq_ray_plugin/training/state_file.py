"""A state becomes a file: a checkpoint, of which a manifest tells that it is whole; a snapshot."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from fairseq_ray_plugin.checkpoints import contents, files, manifests, memory, sums
from fairseq_ray_plugin.training import raw


def write(state: dict[str, Any], path: str) -> None:
    """The state is on disk at `path`, whole or not at all; OSError and torch's errors pass."""
    with files.whole(path, durable=True) as partial, open(partial, "wb") as file:
        summing = sums.Summing(file)
        torch.save(state, summing)
    try:
        facts = contents.facts(state)
    except contents.NoCheckpoint:  # fairseq's crash.pt
        return
    manifests.write(path, summing.fingerprint, facts)


def copy(source: str, target: str) -> None:
    """A checkpoint has another name, too. Not by a link: one that is damaged leaves the other."""
    with files.whole(target, durable=True) as partial:
        shutil.copyfile(source, partial)
    manifests.copy(source, target)


def put_by(state: dict[str, Any], path: str) -> None:
    """The state is in a file that need not outlive the machine: a snapshot."""
    with files.whole(path) as partial:
        memory.use_spare(partial)
        raw.write(state, partial)
