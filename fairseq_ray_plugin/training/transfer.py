"""A state on every rank: read where its file is, received piece by piece where it is not.

Who has the same in its own node's memory reads it there. The others get it in a chain, each piece
from the rank before that wants it, so that no rank sends anything more than once.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel

from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import raw
from fairseq_ray_plugin.training.layout import Bytes, Layout, Memory, Storages, threads

AT_ONCE = 4
"""Pieces under way, so that one is sent while another is read or received."""


def is_alike_on_all_ranks(trainer: Any) -> bool:
    """Whether a file has the state that every rank is to have, and no shard of it or of more."""
    cfg = trainer.cfg
    return not (
        trainer.is_fsdp
        or trainer.tpu
        or cfg.distributed_training.zero_sharding != "none"
        or cfg.common.model_parallel_size > 1
        or getattr(cfg.model, "base_layers", 0) > 0
    )


def load(
    path: str,
    nearby: str | None,
    read: Callable[[str], Any],
    trainer: Any,
    folders: tuple[str, ...],
) -> Any:
    """The state in a file; each rank calls this at the same time.

    What rank 0 has is what all get, bit for bit.

    Args:
        path: of a file that rank 0 has.
        nearby: a file that may have the same state, of this rank's own node.
        read: reads a checkpoint, on rank 0.
        folders: this rank's, in its node's memory: no other file is opened there.
    """
    if trainer.data_parallel_world_size == 1:
        return raw.read(path) if raw.is_raw(path) else read(path)
    group, device = trainer.data_parallel_process_group, trainer.device
    is_first = trainer.data_parallel_rank == 0
    with contextlib.ExitStack() as stack:
        state: Any = None
        source: raw.File | Storages | None = None
        told: list[Any] = [b"", ()]
        if not is_first:
            source = _nearby(path, nearby, folders, stack)
        elif raw.is_raw(path):
            source = stack.enter_context(raw.File(path))
            told = [source.text, source.layout.sizes]
        else:
            state = read(path)
            text, storages = raw.split(state)
            sizes = tuple(storage.nbytes() for storage in storages)
            source, told = Storages(Layout(sizes), storages), [text, sizes]
        dist.broadcast_object_list(told, dist.get_global_rank(group, 0), group, device)
        text, sizes = told
        layout = Layout(sizes)
        lacks = _lacks(source, path, layout, group, device)
        memory = Memory(layout)
        _Move(layout, source, memory, _of_all(lacks, group, device), group, device).run()
        return raw.join(text, memory.storages()) if state is None else state


def _nearby(
    path: str, nearby: str | None, folders: tuple[str, ...], stack: contextlib.ExitStack
) -> raw.File | None:
    """Rank 0's own file, on its node, or another's; None: it is gone, or there is none."""
    for there in (path, nearby):
        if there is not None and os.path.dirname(there) in folders:
            with contextlib.suppress(OSError, ValueError):
                return stack.enter_context(raw.File(there))
    return None


def _lacks(
    own: raw.File | Storages | None, path: str, layout: Layout, group: Any, device: torch.device
) -> np.ndarray[Any, Any]:
    """Which pieces of what rank 0 has are not at hand here: 1 for each; all ranks call this.

    Args:
        path: of rank 0's file.
    """
    is_first, file = dist.get_rank(group) == 0, own if isinstance(own, raw.File) else None
    if is_first or (file is not None and file.path == path):
        lacks = np.zeros(len(layout.pieces), dtype=np.uint8)
    else:
        lacks = np.ones(len(layout.pieces), dtype=np.uint8)
    compares = bool(lacks.any()) and file is not None and file.layout.sizes == layout.sizes
    any_compares = torch.tensor(int(compares), device=device)
    dist.all_reduce(any_compares, dist.ReduceOp.MAX, group=group)
    if any_compares.item():
        told = [file.sums() if file is not None and (is_first or compares) else None]
        mine = told[0]
        dist.broadcast_object_list(told, dist.get_global_rank(group, 0), group, device)
        if compares and told[0] is not None:
            lacks[:] = np.array(mine, dtype=np.uint64) != np.array(told[0], dtype=np.uint64)
    return lacks


def _of_all(lacks: np.ndarray[Any, Any], group: Any, device: torch.device) -> list[list[int]]:
    """Piece by piece, the ranks that lack it."""
    mine = torch.from_numpy(lacks).to(device)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_ranks, mine, group=group)
    table = torch.stack(all_ranks).cpu().numpy()
    return [np.flatnonzero(column).tolist() for column in table.T]


class _Move:
    """The pieces of a state on their way into this rank's memory, and to the next rank."""

    def __init__(
        self,
        layout: Layout,
        source: raw.File | Storages | None,
        memory: Memory,
        lacking: list[list[int]],
        group: Any,
        device: torch.device,
    ) -> None:
        self._pieces, self._source, self._memory = layout.pieces, source, memory
        self._lacking, self._group, self._device = lacking, group, device
        self._rank = dist.get_rank(group)
        self._sent: collections.deque[Any] = collections.deque()

    def run(self) -> None:
        """Who has a piece reads it, by several threads, while the ones before it are sent; who has
        not finds memory for it."""
        with threads() as pool:
            reads: dict[int, Future[Bytes]] = {}
            for number, (piece, ranks) in enumerate(zip(self._pieces, self._lacking, strict=True)):
                read = self._memory.with_pages if self._rank in ranks else self._read
                reads[number] = pool.submit(read, *piece)
            if self._device.type == "cpu":
                self._along_chains(reads)
            else:
                self._by_broadcast(reads)
            for read in reads.values():
                read.result()

    def _read(self, begin: int, end: int) -> Bytes:
        if isinstance(self._source, Storages):
            return self._source.at(begin, end)
        assert self._source is not None
        target = self._memory.with_pages(begin, end)
        self._source.read(begin, target)
        return target

    def _along_chains(self, reads: dict[int, Future[Bytes]]) -> None:
        """From rank 0 to the first that lacks a piece, from there to the second, and so on."""
        coming: collections.deque[tuple[Any, int, Bytes]] = collections.deque()

        def end_one() -> None:
            work, number, piece = coming.popleft()
            work.wait()
            self._send(number, piece)

        for number, ranks in enumerate(self._lacking):
            if self._rank == 0 and ranks:
                self._send(number, reads[number].result())
            elif self._rank in ranks:
                before = [0, *ranks][ranks.index(self._rank)]
                piece = reads[number].result()
                work = dist.irecv(torch.from_numpy(piece), self._global(before), self._group)
                coming.append((work, number, piece))
                if len(coming) >= AT_ONCE:
                    end_one()
        while coming:
            end_one()
        while self._sent:
            self._sent.popleft()[0].wait()

    def _send(self, number: int, piece: Bytes) -> None:
        """To the rank that comes next in the piece's chain, if there is one."""
        chain = [0, *self._lacking[number]]
        place = chain.index(self._rank) + 1
        if place < len(chain):
            there = self._global(chain[place])
            work = dist.isend(torch.from_numpy(piece), there, self._group)
            self._sent.append((work, piece))  # which must live until it is sent
            if len(self._sent) >= AT_ONCE:
                self._sent.popleft()[0].wait()

    def _by_broadcast(self, reads: dict[int, Future[Bytes]]) -> None:
        """NCCL would make a communicator for each pair of ranks: all take part, as in training."""
        for number, ranks in enumerate(self._lacking):
            if not ranks:
                continue
            begin, end = self._pieces[number]
            message = torch.empty(end - begin, dtype=torch.uint8, device=self._device)
            if self._rank == 0:
                message.copy_(torch.from_numpy(reads[number].result()))
            dist.broadcast(message, self._global(0), self._group)
            if self._rank in ranks:
                torch.from_numpy(self._memory.at(begin, end)).copy_(message)

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self._group, rank)


def take_over(model: torch.nn.Module, values: dict[str, Any]) -> None:
    """Parameters have their values' memory, and need not be copied: loading writes them to itself.

    Else each page of a model that ranks inherit would be copied first, and then overwritten.

    Args:
        values: of this model, which nobody else has.
    """
    for name, parameter in model.named_parameters():
        value = values.get(name)
        if (
            *(torch.is_tensor(value), parameter.device.type == "cpu"),
            *(value.layout, value.dtype, value.shape, value.stride()),
        ) == (
            *(True, True),
            *(parameter.layout, parameter.dtype, parameter.shape, parameter.stride()),
        ):
            parameter.data = value.detach()


def without_first_sync() -> None:
    """Patch fairseq: DDP does not make the model alike on all ranks, which a state will do."""
    if "init_sync" not in inspect.signature(DistributedDataParallel.__init__).parameters:
        return  # torch 2.4 always does, which takes longer and changes nothing

    @patch(distributed_fairseq_model, "DistributedDataParallel")
    def without_sync(original: Any, **options: Any) -> Any:
        return original(**options, init_sync=False)
