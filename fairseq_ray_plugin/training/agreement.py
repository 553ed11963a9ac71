"""Whether all ranks hold what they should hold alike: their parameters, and the order of the data.

Ranks drift apart where gradients are not averaged, a model draws something that is its own on
each rank, or a task orders the data by something that is not the same everywhere. Training goes
on as if nothing were wrong, and is another one.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fairseq_ray_plugin.training.refusal import Refused

_ADVICE = (
    "a model that is trained in parts, or has parameters that a loss leaves out, needs "
    "--ddp-backend legacy_ddp or --find-unused-parameters, as with fairseq-train"
)

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A number on the parameters' device, of all their bits; where two differ, it does, too."""
    total: Any = torch.zeros((), dtype=torch.int64)
    for number, parameter in enumerate(parameters):
        bits = _bits_of(parameter.detach())
        # odd, so that no difference vanishes modulo 2^64
        total = total.to(bits.device) + (2 * number + 1) * bits.sum(dtype=torch.int64)
    return total


def _bits_of(parameter: torch.Tensor) -> torch.Tensor:
    """As numbers, by shape and type alone: of 64 bits where they fill these, which is faster."""
    values = parameter.contiguous().view(-1)
    if values.nbytes % 8:
        return values.view(_BITS[values.element_size()])
    is_aligned = values.storage_offset() * values.element_size() % 8 == 0
    return (values if is_aligned else values.clone()).view(torch.int64)


def check(trainer: Any, order: str) -> None:
    """All ranks agree after this update; each of them calls this, at the same time.

    Args:
        order: fingerprint of the order of the data, a hexadecimal number or nothing.

    Raises:
        Refused: they do not; on every rank.
    """
    if trainer.data_parallel_world_size == 1 or differs_by_design(trainer.cfg):
        return
    # experts are each rank's own
    shared = (
        p
        for p in trainer.model.parameters()
        if not (getattr(p, "expert", False) or getattr(p, "base_expert", False))
    )
    values = checksum(shared), torch.tensor(int(order or "0", 16))
    mine = torch.stack([value.to(trainer.device) for value in values])
    all_ranks = [torch.empty_like(mine) for _ in range(trainer.data_parallel_world_size)]
    torch.distributed.all_gather(all_ranks, mine, group=trainer.data_parallel_process_group)
    parameters, orders = zip(*(pair.tolist() for pair in all_ranks), strict=True)
    when = f"after update {trainer.get_num_updates()}"
    for found, what, advice in (
        (orders, "data in another order", ""),
        (parameters, "other parameters", f" ({_ADVICE})"),
    ):
        if odd := odd_ones(found):
            raise Refused(
                f"{when}, {odd} of {len(found)} had {what} than the rest; what followed would be "
                f"another training{advice}. Checkpoints are from before: all ranks agreed on each",
                spoiled=True,
            )


def differs_by_design(cfg: Any) -> bool:
    """Whether ranks hold each their own: between two syncs, or a shard of one whole."""
    distributed = cfg.distributed_training
    return bool(
        cfg.optimization.use_bmuf
        or distributed.ddp_backend in ("slow_mo", "slowmo", "fully_sharded")
        or distributed.pipeline_model_parallel
        or cfg.common.model_parallel_size > 1
    )


def usual(values: Sequence[int]) -> int:
    """What most ranks have, or of two the first."""
    ((value, _),) = collections.Counter(values).most_common(1)
    return value


def odd_ones(values: Sequence[int]) -> str:
    """The ranks that do not have what is usual, for people."""
    most = usual(values)
    odd = [str(rank) for rank, value in enumerate(values) if value != most]
    return f"rank{'s' * (len(odd) > 1)} {', '.join(odd)}" if odd else ""
