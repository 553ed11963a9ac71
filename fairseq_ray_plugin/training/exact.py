"""What fairseq's checkpoints leave out of a trainer's state, so that it returns bit for bit.

With --fp16 and --bf16 fairseq saves the parameters rounded to 16 bits, and each restart rounds
those that the optimizer works on. Of the loss scaler it saves the scale alone, and the task's
state it saves but does not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def collect(trainer: Any, with_params: bool = True) -> dict[str, Any]:
    """What is left out: values and references to tensors, not copies.

    Args:
        with_params: the 32-bit parameters, too, which make a checkpoint 40% larger.
    """
    optimizer = trainer.optimizer
    state: dict[str, Any] = {"task": trainer.task.state_dict()}
    if with_params:
        state["fp32_params"] = [param.data for param in _full_precision(optimizer)]
    scaler = getattr(optimizer, "scaler", None)
    if hasattr(scaler, "state_dict"):  # torch's, with --amp
        state["scaler"] = scaler.state_dict()
        state["amp_retries"] = trainer._amp_retries
    elif scaler is not None:
        # its counters; its window may depend on the world size
        state["scaler"] = {k: v for k, v in scaler_of(optimizer).items() if k.startswith("_")}
    if trainer.cfg.ema.store_ema:
        state["ema_counter"] = trainer.ema.update_freq_counter
    return state


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what `collect` returned, in a trainer that has loaded the rest."""
    optimizer = trainer.optimizer
    trainer.task.load_state_dict(state.get("task", {}))
    params = _full_precision(optimizer)
    saved = optimizer.layout.kept_of(state.get("fp32_params", []))
    # a user who changes the precision or the model between two starts has other ones
    if [param.shape for param in params] == [param.shape for param in saved]:
        for param, value in zip(params, saved, strict=True):
            param.data.copy_(value)
    scaler = getattr(optimizer, "scaler", None)
    if hasattr(scaler, "load_state_dict"):
        if state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        # of overflows in a row, as fairseq has it: an update that succeeds does not end the row
        trainer._amp_retries = state.get("amp_retries", 0)
    elif scaler is not None:
        vars(scaler).update(state.get("scaler", {}))
    if trainer.cfg.ema.store_ema:
        trainer.ema.update_freq_counter = state.get("ema_counter", 0)


def scaler_of(optimizer: Any) -> dict[str, Any]:
    """The scale and the counters of fairseq's loss scaler; nothing where there is none."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return {}
    return {k: v for k, v in vars(scaler).items() if k.startswith("_") or k == "loss_scale"}


def _full_precision(optimizer: Any) -> list[torch.Tensor]:
    """The 32-bit parameters of a 16-bit model: a tensor per device, or one per parameter."""
    params = getattr(optimizer, "fp32_params", None) or []
    return list(params.values() if isinstance(params, dict) else params)
