"""Memory that the first update after a restart will take is touched ahead of need.

A process gets a page when it first writes to it, which takes a microsecond or two, and for a model
of 90 million parameters half a million pages. Who waits anyway has that done before. Nothing else
changes: what is touched keeps its values, or has none yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from fairseq_ray_plugin.training import pages

BLOCK = 16 << 20
"""Bytes that are asked of the allocator at once: it keeps them for the next one who asks."""

KEPT = {"MALLOC_MMAP_THRESHOLD_": 2 * BLOCK, "MALLOC_TRIM_THRESHOLD_": 1 << 32}
"""What glibc must be told at least, so that it does."""

STATES = {"adam": 2, "adamax": 2, "adadelta": 2, "adagrad": 1}
"""Tensors as large as a parameter that fairseq's optimizers have of it; others: not known."""

SPARED = 8
"""The part of the machine's memory, or of the container's, that is left: an eighth."""


class Warmed:
    """Memory that has been touched, and waits for the first update."""

    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._buckets: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def hold(self, blocks: list[int], buckets: list[tuple[int, int]]) -> None:
        """Blocks of the allocator's, and where DDP has its buckets until the first update."""
        with self._lock:
            self._blocks, self._buckets = blocks, buckets

    @contextlib.contextmanager
    def unused(self) -> Iterator[pages.Pages]:
        """What processes that are forked meanwhile have no use for, as it is in use by nobody."""
        with self._lock:
            yield pages.within([*((block, BLOCK) for block in self._blocks), *self._buckets])

    def release(self) -> None:
        """Whoever asks for memory next gets what was held."""
        with self._lock:
            blocks, self._blocks, self._buckets = self._blocks, [], []
            _give_back(blocks)


def warm(trainer: Any) -> Warmed:
    """Touch what a state that is loaded will be written to, and the first update after it.

    To be called before that by the thread that trains, when the ranks have met. It runs no code of
    the user's, draws no random number, and changes no value. On a GPU it does nothing.

    Args:
        trainer: fairseq's, as it was made. DDP is made here, as fairseq does when first asked.
    """
    warmed = Warmed()
    if trainer.device.type != "cpu":
        return warmed
    parameters = [p for p in trainer._model.parameters() if p.requires_grad]
    num_states = STATES.get(getattr(trainer.cfg.optimizer, "_name", ""), 0)
    # the state that is gone on from is still to be written to the machine's memory
    to_come = (1 + num_states) * sum(p.nbytes for p in parameters)
    _touch(pages.of(parameters), to_come)
    blocks: list[int] = []
    if (limit := _kept_by_allocator()) is not None:
        size = sum(p.nbytes for p in parameters if p.nbytes < limit)
        states = _take(size * num_states, to_come)
        # loader processes are forked before there are gradients: until then their memory is held,
        # or what was touched would have to be copied
        blocks = _take(size, to_come)
        _give_back(states)  # the state's, which comes next
    with _Allocations() as allocations:
        wrapped = getattr(trainer.model, "module", None)
        if isinstance(wrapped, LegacyDistributedDataParallel):  # its own would be later, and alike
            kind = next(wrapped.module.parameters()).dtype
            wrapped.buffer = torch.empty(wrapped.buffer_size, dtype=kind)
    buckets = allocations.there()
    _touch(pages.within(buckets), to_come)
    warmed.hold(blocks, buckets)
    _release_at_first_update(trainer, warmed)
    return warmed


def _release_at_first_update(trainer: Any, warmed: Warmed) -> None:
    def train_step(*args: Any, **options: Any) -> Any:
        del trainer.train_step  # for once: its class's own is what there was
        warmed.release()
        return trainer.train_step(*args, **options)

    trainer.train_step = train_step


class _Allocations(TorchDispatchMode):
    """Large tensors that torch makes meanwhile without values."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[TensorWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format and result.device.type == "cpu":
            self._made.append(TensorWeakRef(result))
        return result

    def there(self) -> list[tuple[int, int]]:
        """Address and bytes of those that somebody still has, which may be C++."""
        tensors = [tensor for made in self._made if (tensor := made()) is not None]
        return [(t.data_ptr(), t.nbytes) for t in tensors if t.nbytes >= pages.LARGE]


def _kept_by_allocator() -> int | None:
    """Bytes below which glibc keeps what is given back; None: that may be too few."""
    values = {name: os.environ.get(name, "") for name in KEPT}
    if all(value.isdigit() and int(value) >= KEPT[name] for name, value in values.items()):
        return int(values["MALLOC_MMAP_THRESHOLD_"])
    return None


def _take(size: int, to_come: int) -> list[int]:
    """Blocks of so many bytes in all, touched, by their addresses; less where there is no room."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    blocks: list[int] = []
    while (
        len(blocks) * BLOCK < size and _has_room(to_come) and (block := malloc(BLOCK)) is not None
    ):
        blocks.append(block)
        pages.touch(pages.within([(block, BLOCK)]))
    return blocks


def _give_back(blocks: list[int]) -> None:
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, (ctypes.c_void_p,)
    for block in blocks:
        free(block)


def _touch(ranges: pages.Pages, to_come: int) -> None:
    for place in ranges:
        if _has_room(to_come):
            pages.touch([place])


def _has_room(to_come: int) -> bool:
    """Whether others, such as ranks that still train, are left what they may need.

    Args:
        to_come: bytes that will be taken for sure.
    """
    memory = psutil.virtual_memory()
    if memory.available < memory.total // SPARED + to_come:
        return False
    try:  # the container's, as Kubernetes and Docker show it
        limit, current = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current")
        )
    except (OSError, ValueError):  # there is none
        return True
    return limit - current >= limit // SPARED + to_come
