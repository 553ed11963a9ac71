"""A state's way from the GPU to the host's memory, by which it comes when nothing else goes on.

It is wanted when a collective's other end is dead: a kernel that never ends is in the GPU's queue,
and memory there may be full. So the way is made before training begins, and uses nothing of what
training uses: one stream of its own, which waits for the boundary alone; page-locked memory that is
there already; and no memory of the GPU at all, since to free some waits for all kernels. (A tensor
of 16 bits becomes one of 32, as fairseq has it in files, and fairseq does that on the GPU.)

What runs on a CPU is the same, with a stream that is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from fairseq import utils

PAGE = 32 << 20
"""Bytes of page-locked memory, two of which a rank has: one is filled while the other is read."""

Key = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """Page-locked memory, and when the GPU has filled it."""

    memory: torch.Tensor
    filled: Any = None
    """An event; None: nothing need be waited for."""


def key_of(tensor: torch.Tensor) -> Key:
    """Where a tensor's values are, and how they lie there: alike for all views of the same."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


class ToHost:
    """The way of one process. Any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._boundary: Any = None
        self._pages: tuple[Page, ...] = ()
        self._lock = threading.Lock()

    def mark(self) -> None:
        """The state is what it is after all that this thread has asked of the GPU so far.

        With the first mark in a process that uses a GPU the way is there; it takes 2 `PAGE` of the
        host's memory. (With --cpu, too, where there is a GPU: fairseq has its gnorm there.)
        """
        if self._stream is None and torch.cuda.is_initialized():
            self._stream, self._boundary = torch.cuda.Stream(), torch.cuda.Event()
            self._pages = tuple(
                Page(torch.empty(PAGE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())
                for _ in range(2)
            )
        if self._stream is not None:
            self._boundary.record()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What is asked of the GPU here waits for the mark, and for nothing that comes after it."""
        with self._lock:
            if self._stream is None:
                yield
                return
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._boundary)
                yield

    def copy(self, state: Any, instead: Mapping[Key, torch.Tensor]) -> Any:
        """A state with all its tensors on the CPU, of 32 bits where they had 16.

        To be called while `reading`. Tensors that are there already are not copied, and those that
        share their values still do.

        Args:
            instead: tensors that have others' values in the state, by the others' keys.
        """
        made: dict[Key, torch.Tensor] = {}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.layout is not torch.strided:
                return tensor.cpu()
            if tensor.numel():
                tensor = instead.get(key_of(tensor), tensor)
            is_there = tensor.device.type == "cpu"
            has_16_bits = tensor.dtype in (torch.float16, torch.bfloat16)
            if is_there and not has_16_bits:
                return tensor
            key = key_of(tensor)
            if key not in made or not tensor.numel():
                value = tensor if is_there else fetch(tensor, self._pages)
                made[key] = value.float() if has_16_bits else value
            return made[key]

        return utils.apply_to_sample(move, state)


def fetch(tensor: torch.Tensor, pages: Sequence[Page]) -> torch.Tensor:
    """A copy of a tensor in the host's memory, by way of `pages`; its elements lie as they did.

    They are taken as they lie, with what is between them: to put them in order would take memory
    of the GPU.
    """
    shape, stride = tensor.shape, tensor.stride()
    if tensor.numel() == 0:
        return torch.empty(shape, dtype=tensor.dtype)
    length = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    flat = tensor.detach().as_strided((length,), (1,), tensor.storage_offset())
    copied = torch.empty(length, dtype=tensor.dtype)
    source, target = flat.view(torch.uint8), copied.view(torch.uint8)
    room = pages[0].memory.numel()
    under_way: list[tuple[Page, int, int]] = []

    def end_one() -> None:
        page, begin, size = under_way.pop(0)
        if page.filled is not None:
            page.filled.synchronize()
        target[begin : begin + size].copy_(page.memory[:size])

    for number, begin in enumerate(range(0, source.numel(), room)):
        page, size = pages[number % len(pages)], min(room, source.numel() - begin)
        if len(under_way) == len(pages):
            end_one()
        page.memory[:size].copy_(source[begin : begin + size], non_blocking=True)
        if page.filled is not None:
            page.filled.record()
        under_way.append((page, begin, size))
    while under_way:
        end_one()
    return copied.as_strided(shape, stride)
