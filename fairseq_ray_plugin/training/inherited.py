"""Task and model are made once, before any rank is forked: ranks inherit them.

A rank that makes a model draws weights that a state then overwrites. One that inherits it has the
same one, digit for digit, and random generators in the same state: the seeds are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from fairseq import tasks
from omegaconf import OmegaConf, open_dict

from fairseq_ray_plugin.checkpoints import files
from fairseq_ray_plugin.training import raw

logger = logging.getLogger(__name__)

BY_RANK = {
    "distributed_training": (
        "distributed_world_size",
        "distributed_num_procs",
        "distributed_rank",
        "distributed_init_method",
        "nprocs_per_node",
        "device_id",
    ),
    "optimization": ("update_freq",),
}
"""What is another value in each rank or generation: who asks for it cannot be inherited."""

LARGE = 1 << 20
"""Bytes from which a tensor is shared by the workers of a node."""

_MISSING = "???"  # omegaconf raises where it is asked for


class NotInherited(Exception):
    """Task and model must be made in each rank; says why."""


@dataclasses.dataclass(frozen=True)
class Inherited:
    """What fairseq's `main` would have at hand when it has built its model."""

    task: Any
    model: Any
    numpy_state: Any
    torch_state: torch.Tensor
    log: tuple[logging.LogRecord, ...]
    """What was said while it was made."""


def make(cfg: Any) -> Inherited:
    """Make task and model as fairseq's `main` would, in a process that ranks are forked from.

    The process must have no threads but this one afterwards, and CUDA must not have been started.

    Args:
        cfg: fairseq's configuration, the very object that ranks get.

    Raises:
        NotInherited: it cannot be; nothing has been changed but by the user's own code.
    """
    distributed = cfg.distributed_training
    if distributed.ddp_backend == "fully_sharded" or distributed.pipeline_model_parallel:
        raise NotInherited("the model is made in shards")
    if cfg.common.model_parallel_size > 1 or cfg.common.tpu:
        raise NotInherited("the model is made on the device")
    log: list[logging.LogRecord] = []
    try:
        with _one_thread(), _without_rank(cfg), _no_device(), _kept(log):
            num_threads = _num_threads()
            np.random.seed(cfg.common.seed)
            torch.manual_seed(cfg.common.seed)  # fairseq's own way reads the GPU's generator, too
            task = tasks.setup_task(cfg.task)
            model = task.build_model(cfg.model)
            # before their number is set back: torch 2.4 starts some then, and anew once forked
            has_new_threads = _num_threads() > num_threads
    except Exception as error:
        raise NotInherited(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    if has_new_threads:
        raise NotInherited("making them starts threads")
    return Inherited(task, model, np.random.get_state(), torch.get_rng_state(), tuple(log))


def share(model: torch.nn.Module, path: str) -> None:
    """The model's values are in memory once a node, for all processes that share them in `path`.

    Each still has them for itself: who writes to a page gets its own. What is not the same bit for
    bit stays as it is, and all of it where there is no room.

    Args:
        path: of a file in the node's memory, which is made by who comes first.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if _is_plain(t)]
    values = [tensor.data for tensor in tensors]
    try:
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not raw.is_raw(path):
                with files.whole(path) as partial:
                    raw.write(values, partial)
        shared = raw.read(path, mapped=True)
    except (OSError, ValueError) as error:
        logger.info("each worker has a model of its own: %s", error)
        return
    if len(shared) == len(tensors):
        for tensor, value in zip(tensors, shared, strict=True):
            same_kind = (tensor.shape, tensor.dtype) == (value.shape, value.dtype)
            if same_kind and torch.equal(tensor.data.view(torch.uint8), value.view(torch.uint8)):
                tensor.data = value
    del values
    with contextlib.suppress(AttributeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is large enough to share, and nothing but numbers one after the other."""
    is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return is_dense and tensor.is_contiguous() and tensor.nbytes >= LARGE


def use(inherited: Inherited, cfg: Any) -> None:
    """fairseq's `main`, in this process, gets them where it would make them."""
    setup_task = tasks.setup_task

    def inherited_task(task_cfg: Any, **options: Any) -> Any:
        if task_cfg is not cfg.task or options:
            return setup_task(task_cfg, **options)
        tasks.setup_task = setup_task
        inherited.task.build_model = inherited_model
        for record in inherited.log:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        return inherited.task

    def inherited_model(model_cfg: Any, *args: Any, **options: Any) -> Any:
        del inherited.task.build_model  # for once: its class's own makes others
        if model_cfg is not cfg.model or args or options:
            return inherited.task.build_model(model_cfg, *args, **options)
        np.random.set_state(inherited.numpy_state)
        torch.set_rng_state(inherited.torch_state)
        return inherited.model

    tasks.setup_task = inherited_task


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """OpenMP's threads do not survive a fork, and who waits for them then waits for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _without_rank(cfg: Any) -> Iterator[None]:
    """Who asks which rank this is, of how many, gets an exception instead of a wrong answer."""
    nodes = {name: cfg[name] for name in BY_RANK}
    # with interpolations as they are, whose values may be missing
    plain: Any = {name: OmegaConf.to_container(node) for name, node in nodes.items()}
    before = {name: {key: plain[name][key] for key in keys} for name, keys in BY_RANK.items()}
    with _raising(torch.distributed, ("is_initialized", "get_rank", "get_world_size")):
        try:
            _set(nodes, {name: dict.fromkeys(keys, _MISSING) for name, keys in BY_RANK.items()})
            yield
        finally:
            _set(nodes, before)


def _set(nodes: dict[str, Any], values: dict[str, dict[str, Any]]) -> None:
    for name, node in nodes.items():
        with open_dict(node):
            for key, value in values[name].items():
                node[key] = value


@contextlib.contextmanager
def _no_device() -> Iterator[None]:
    """A process whose parent has started CUDA cannot use it."""
    # parts of torch.cuda have a `_lazy_init` of their own, which ends in the second of these
    starts = ("_cuda_init",) if hasattr(torch._C, "_cuda_init") else ()
    with _raising(torch.cuda, ("_lazy_init",)), _raising(torch._C, starts):
        yield


@contextlib.contextmanager
def _raising(module: Any, names: tuple[str, ...]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in names}

    def refusal(name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> Any:
            raise NotInherited(f"{module.__name__}.{name} is called before there are ranks")

        return refuse

    try:
        for name in names:
            setattr(module, name, refusal(name))
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


@contextlib.contextmanager
def _kept(log: list[logging.LogRecord]) -> Iterator[None]:
    """What is said is kept, for the ranks to say."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.append(record)

    root.handlers[:] = [Keeper()]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
