"""What of a state an update changes before its optimizer step, as it was at the boundary.

A forward moves the averages of BatchNorm, and what else a model keeps in buffers; a gradient that
overflows changes the scale of the loss. They are few bytes, and are copied at each boundary, so
that a state that is held in the middle of an update is the boundary's bit for bit.

Not among them are parameters that a forward itself changes (--quant-noise-pq), and what a user's
task or criterion keeps elsewhere than in buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer

from fairseq_ray_plugin.training import exact
from fairseq_ray_plugin.training.to_host import Key, key_of


class Changing:
    """Copies of it, on the device where it is: to be made, and to be put in its place.

    Args:
        trainer: which has its model, criterion and optimizer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        # each module's own dict: who puts another tensor in a buffer's place is followed
        self._modules = [*trainer.model.modules(), *trainer.criterion.modules()]
        self._copies: dict[tuple[int, str], torch.Tensor] = {}
        self._scaler: dict[str, Any] = {}
        self._amp: list[torch.Tensor | None] = [None, None]

    def record(self) -> None:
        """It is now what it is at the boundary."""
        for place, buffer in self._buffers():
            self._copies[place] = _copied(buffer, self._copies.get(place))
        optimizer = self._trainer.optimizer
        if isinstance(optimizer, AMPOptimizer):  # on the GPU: to read it would wait for that
            # neither is there before the first update, nor where CUDA is not
            names = ("_scale", "_growth_tracker")
            there = [getattr(optimizer.scaler, name, None) for name in names]
            self._amp = [
                tensor if tensor is None else _copied(tensor, before)
                for tensor, before in zip(there, self._amp, strict=True)
            ]
            self._scaler = {"retries": self._trainer._amp_retries}
        else:
            self._scaler = exact.scaler_of(optimizer)

    def instead(self) -> dict[Key, torch.Tensor]:
        """The copies, by what they stand for."""
        return {
            key_of(buffer): self._copies[place]
            for place, buffer in self._buffers()
            if place in self._copies and buffer.numel()
        }

    def put_back(self, state: dict[str, Any], left_out: dict[str, Any]) -> None:
        """In a state, and in what `exact.collect` returned: the scale of the loss is that then."""
        if isinstance(self._trainer.optimizer, AMPOptimizer):
            if left_out.get("scaler"):
                scaler, (scale, growth) = self._trainer.optimizer.scaler, self._amp
                left_out["scaler"]["scale"] = (
                    scaler._init_scale if scale is None else float(scale.item())
                )
                left_out["scaler"]["_growth_tracker"] = (
                    scaler._init_growth_tracker if growth is None else int(growth.item())
                )
            left_out["amp_retries"] = self._scaler["retries"]
        elif self._scaler:
            left_out["scaler"] = {k: v for k, v in self._scaler.items() if k.startswith("_")}
            optimizer_state = state.get("last_optimizer_state")
            if optimizer_state and "loss_scale" in optimizer_state:
                optimizer_state["loss_scale"] = self._scaler["loss_scale"]

    def _buffers(self) -> Iterator[tuple[tuple[int, str], torch.Tensor]]:
        """Those that are part of a state, each with its place."""
        for number, module in enumerate(self._modules):
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    yield (number, name), buffer


def _copied(tensor: torch.Tensor, to: torch.Tensor | None) -> torch.Tensor:
    """In the memory that the last copy has: nothing is allocated but for the first one."""
    tensor = tensor.detach()
    is_alike = to is not None and (to.shape, to.dtype, to.device) == (
        *(tensor.shape, tensor.dtype, tensor.device),
    )
    if to is None or not is_alike:
        return tensor.clone()
    return to.copy_(tensor)
