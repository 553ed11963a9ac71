"""Gradients that no loss has given are the same at any number of workers."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.optim import FairseqOptimizer

from fairseq_ray_plugin.compat.modules import patch


def as_on_several_workers(ddp_backend: str) -> None:
    """Patch fairseq, in the only rank of a generation with a fixed batch.

    With ``legacy_ddp`` a parameter without a gradient gets one of zeros (distributed/
    legacy_distributed_data_parallel.py:138), so the optimizer counts its steps and decays it; the
    layers that wav2vec 2.0 freezes at first are such. One rank alone has no such wrapper, and a
    resize would be another training. The other back ends leave it without, as one rank does.
    """
    if ddp_backend not in ("legacy_ddp", "no_c10d"):
        return

    @patch(FairseqOptimizer, "all_reduce_grads")
    def all_reduce_grads(original: Any, optimizer: Any, module: torch.nn.Module) -> None:
        original(optimizer, module)
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
