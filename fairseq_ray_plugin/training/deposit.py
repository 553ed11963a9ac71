"""A checkpoint that is due: training puts the state by in memory, and goes on.

What fairseq does after it has collected the state (names, copies, older ones that go) happens
behind training, in a process of its own (`worker/writer`).
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from fairseq import checkpoint_utils
from omegaconf import OmegaConf

DUE = "due"
"""Key of the plan in a state that is put by."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What fairseq was asked to do, and what it will ask for."""

    cfg: Any
    """Of checkpoints, as plain values."""

    val_loss: float | None
    best: float | None
    """The best loss before this one."""

    update: int
    epoch: int
    end_of_epoch: bool
    iterator: dict[str, Any]
    suffix: str


class PutBy(Exception):
    """Ends fairseq's function where it would write."""


def plan_of(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float | None) -> Plan:
    """What is asked of fairseq's function now."""
    return Plan(
        cfg=SimpleNamespace(**OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)),
        val_loss=val_loss,
        best=getattr(checkpoint_utils.save_checkpoint, "best", None),
        update=trainer.get_num_updates(),
        epoch=epoch_itr.epoch,
        end_of_epoch=epoch_itr.end_of_epoch(),
        iterator=epoch_itr.state_dict(),
        suffix=trainer.checkpoint_suffix,
    )
