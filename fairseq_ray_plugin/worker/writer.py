"""A process that makes a checkpoint of a state in memory, by fairseq's own function.

Which names it has, what is copied to them and which older ones go is fairseq's to say
(`checkpoint_utils.save_checkpoint`), as if training had waited for it: it asks what it needs of a
trainer and an iterator, and these answer as they did then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from fairseq_ray_plugin.assignment import WriteCheckpoint, Written
from fairseq_ray_plugin.checkpoints import claim, claim_places, contents, files, manifests, stores
from fairseq_ray_plugin.checkpoints.contents import EXTRA
from fairseq_ray_plugin.options import last_checkpoint
from fairseq_ray_plugin.training import raw, state_file
from fairseq_ray_plugin.training.boundary import OPTIMIZER_ADDED
from fairseq_ray_plugin.training.deposit import DUE, Plan
from fairseq_ray_plugin.worker.to_store import ToStore

NICENESS = 5
"""Training comes first."""


def write_checkpoint(task: WriteCheckpoint, connection: Connection) -> None:
    """Answer who writes, and then what came of it: `Written`, or why not."""
    os.nice(NICENESS)
    connection.send(os.getpid())
    begin = time.monotonic()
    try:
        result: Written | str = _write(task)
        result = dataclasses.replace(result, seconds=time.monotonic() - begin)
    except Exception as error:
        result = _reason(error)
    connection.send(result)
    os._exit(0)


def _write(task: WriteCheckpoint) -> Written:
    state = raw.read(task.snapshot, mapped=True)
    plan: Plan | None = state.pop(DUE, None)
    if task.target is None:
        assert plan is not None
        # what is in it for a snapshot alone: these files stay as large as stock fairseq's
        ours = state["extra_state"][EXTRA]
        ours["left_out"].pop("params", None)
        if ours.pop(OPTIMIZER_ADDED, False):
            del state["last_optimizer_state"]
    if task.store:
        return _write_to_store(task, state, plan)
    if task.target is not None:
        _require_claim(os.path.dirname(task.target), task.claim)
        _save(state, task.target, _has_newer)
        return Written(task.target)
    assert plan is not None
    _require_claim(plan.cfg.save_dir, task.claim)
    for folder in (plan.cfg.save_dir, os.path.join(plan.cfg.save_dir, manifests.FOLDER)):
        files.remove_partials(folder)
    PathManager.copy = staticmethod(_copy)
    path = as_fairseq_does(plan, lambda filename: _save(state, filename, _has_newer))
    return Written(path, num_bytes=_bytes(path))


def _write_to_store(task: WriteCheckpoint, state: dict[str, Any], plan: Plan | None) -> Written:
    _require_claim(task.store, task.claim)
    there = ToStore(task.store, task.passage)
    _name_save_dir(state, there.shown)
    if task.target is not None:
        path: str | None = os.path.join(there.folder, os.path.basename(task.target))
        _save(state, str(path), there.has_newer)
    else:
        assert plan is not None
        plan.cfg.save_dir = there.folder
        PathManager.copy = staticmethod(there.copy)
        path = as_fairseq_does(plan, lambda filename: _save(state, filename, there.has_newer))
    num_bytes = _bytes(path)
    there.send()
    return Written(None if path is None else there.path(path), num_bytes=num_bytes)


def _bytes(path: str | None) -> int | None:
    with contextlib.suppress(OSError):
        return None if path is None else os.path.getsize(path)
    return None


def _name_save_dir(state: dict[str, Any], save_dir: str) -> None:
    """In the options, instead of the rank's own folder, which is of this run and this node."""
    checkpoint = (state.get("cfg") or {}).get("checkpoint")
    if isinstance(checkpoint, dict) and "save_dir" in checkpoint:
        checkpoint["save_dir"] = save_dir


def _require_claim(save_dir: str, number: int) -> None:
    if claim.is_overtaken(claim_places.place_of(save_dir), number):
        raise OSError(f"{stores.shown(save_dir)} {claim.OVERTAKEN}")


def as_fairseq_does(plan: Plan, save: Callable[[str], None]) -> str | None:
    """All that fairseq does for a checkpoint; returns the name by which it can be gone on from.

    Args:
        save: writes the state to a path.
    """
    written: list[str] = []

    def save_first(filename: str) -> None:
        save(filename)
        written.append(filename)

    logging.getLogger(checkpoint_utils.__name__).addFilter(_is_not_said_by_the_rank)
    function = checkpoint_utils.save_checkpoint
    if plan.best is None:
        vars(function).pop("best", None)
    else:
        function.best = plan.best
    function(plan.cfg, _Trainer(plan, save_first), _Iterator(plan), plan.val_loss)
    if not written:
        return None
    # which stays, while others go as newer ones come
    return written[0] if plan.cfg.no_last_checkpoints else last_checkpoint(plan.cfg)


class _Trainer:
    """What fairseq asks of a trainer as it writes a checkpoint."""

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    always_call_state_dict_during_save_checkpoint = False
    task = None  # fairseq main asks whether a user's has more to add (get_checkpoint_dict)

    def __init__(self, plan: Plan, save: Callable[[str], None]) -> None:
        self._plan, self._save = plan, save
        self.checkpoint_suffix = plan.suffix

    def get_num_updates(self) -> int:
        return self._plan.update

    def consolidate_optimizer(self) -> None:
        pass

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> str:
        self._save(filename)
        return filename


class _Iterator:
    """What fairseq asks of an epoch's iterator as it writes a checkpoint."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self.epoch = plan, plan.epoch

    def end_of_epoch(self) -> bool:
        return self._plan.end_of_epoch

    def state_dict(self) -> dict[str, Any]:
        return self._plan.iterator


def _is_not_said_by_the_rank(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Preparing to save")


def _save(
    state: dict[str, Any], filename: str, has_newer: Callable[[str, contents.Facts], bool]
) -> None:
    if has_newer(filename, contents.facts(state)):
        return
    folder = os.path.dirname(filename) or "."
    os.makedirs(folder, exist_ok=True)
    there = os.statvfs(folder)
    free, wanted = there.f_bavail * there.f_frsize, _size(state)
    if free < wanted:  # found out before a gigabyte has been written
        text = f"{wanted >> 20} MB are to be written, and {free >> 20} MB are free"
        raise OSError(errno.ENOSPC, text, filename)
    state_file.write(state, filename)


def _size(value: Any) -> int:
    """Bytes of all tensors in it; what they share is counted once."""
    sizes: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                count(item)
        elif isinstance(value, list | tuple):
            for item in value:
                count(item)

    count(value)
    return sum(sizes.values())


def _has_newer(path: str, facts: contents.Facts) -> bool:
    """Whether a later state of this training has that name: two nodes may have had one to write."""
    try:
        there = manifests.read(path)
    except OSError:
        return False
    return there is not None and facts.precedes(there.facts)


def _copy(source: str, target: str, overwrite: bool = False) -> bool:
    """As fairseq asks for it, but not over a later state."""
    ours = manifests.read(source)
    if ours is not None and _has_newer(target, ours.facts):
        return True
    state_file.copy(source, target)
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, stores.StoreError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a checkpoint'}: {error.strerror}"
    return repr(error)
