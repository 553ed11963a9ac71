"""A state on every rank: read where its file is, received in large messages where it is not."""

from __future__ import annotations

import collections
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel

from fairseq_ray_plugin.compat.modules import patch
from fairseq_ray_plugin.training import raw

LARGE = 1 << 20
"""Bytes from which a storage is a message of its own; smaller ones share one."""

MESSAGE = 32 << 20
"""Bytes in a message of small ones, at most."""

AT_ONCE = 4
"""Messages under way, so that one is sent while another is received."""


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
    path: str, read: Callable[[str], Any], trainer: Any, folders: tuple[str, ...]
) -> dict[str, Any]:
    """The state in a file; each rank calls this at the same time.

    Args:
        path: of a file that rank 0 has.
        read: reads it; tensors may be the file's own pages, for `raw.own` to copy.
        folders: this rank's, in its node's memory: what is there can be read without rank 0.
    """
    if trainer.data_parallel_world_size == 1 or _all_have(path, trainer, folders):
        return raw.own(read(path))
    group, device = trainer.data_parallel_process_group, trainer.device
    if trainer.data_parallel_rank > 0:
        return receive(group, device)
    state = read(path)
    send(state, group, device)
    return raw.own(state)


def without_first_sync() -> None:
    """Patch fairseq: DDP does not make the model alike on all ranks, which a state will do."""
    if "init_sync" not in inspect.signature(DistributedDataParallel.__init__).parameters:
        return  # torch 2.4 always does, which takes longer and changes nothing

    @patch(distributed_fairseq_model, "DistributedDataParallel")
    def without_sync(original: Any, **options: Any) -> Any:
        return original(**options, init_sync=False)


def _all_have(path: str, trainer: Any, folders: tuple[str, ...]) -> bool:
    has = os.path.dirname(path) in folders and raw.is_raw(path)
    all_have = torch.tensor(int(has), device=trainer.device)
    dist.all_reduce(all_have, dist.ReduceOp.MIN, group=trainer.data_parallel_process_group)
    return bool(all_have.item())


def send(state: Any, group: Any, device: torch.device) -> None:
    """Give a state to all other ranks of `group`, of which this is the first."""
    text, storages = raw.split(state)
    sizes = {offset: storage.nbytes() for offset, storage in storages.items()}
    dist.broadcast_object_list([text, sizes], _first_of(group), group, device)
    under_way: collections.deque[Any] = collections.deque()
    for offsets in _messages(sizes):
        pieces = [_bytes_of(storages[offset]) for offset in offsets]
        message = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(device)
        work = dist.broadcast(message, _first_of(group), group, async_op=True)
        under_way.append((work, message))  # which must live until it is sent
        while len(under_way) >= AT_ONCE:
            under_way.popleft()[0].wait()
    for work, _ in under_way:
        work.wait()


def receive(group: Any, device: torch.device) -> Any:
    """The state that the first rank of `group` sends."""
    told: list[Any] = [None, None]
    dist.broadcast_object_list(told, _first_of(group), group, device)
    text, sizes = told
    storages = {offset: torch.UntypedStorage(size) for offset, size in sizes.items()}
    under_way: collections.deque[Any] = collections.deque()

    def end_one() -> None:
        work, message, pieces = under_way.popleft()
        work.wait()
        if message is not pieces[0]:
            for piece, part in zip(pieces, message.split([len(p) for p in pieces]), strict=True):
                piece.copy_(part)

    for offsets in _messages(sizes):
        pieces = [_bytes_of(storages[offset]) for offset in offsets]
        message = pieces[0]
        if len(pieces) > 1 or device.type != "cpu":
            total = sum(map(len, pieces))
            message = torch.empty(total, dtype=torch.uint8, device=device)
        work = dist.broadcast(message, _first_of(group), group, async_op=True)
        under_way.append((work, message, pieces))
        while len(under_way) >= AT_ONCE:
            end_one()
    while under_way:
        end_one()
    return raw.join(text, storages)


def _first_of(group: Any) -> int:
    return dist.get_global_rank(group, 0)


def _messages(sizes: dict[int, int]) -> Iterator[list[int]]:
    """Which storages make up each message; the same on every rank."""
    small: list[int] = []
    total = 0
    for offset, size in sizes.items():
        if size >= LARGE:
            yield [offset]
        elif size:
            if total + size > MESSAGE:
                yield small
                small, total = [], 0
            small.append(offset)
            total += size
    if small:
        yield small


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
