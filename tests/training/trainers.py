"""A small trainer of fairseq's, of any precision, on any device, and updates of it."""

import pytest
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from fairseq_ray_plugin.training.boundary import Boundary

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    ),
]

PRECISIONS = {
    "fp32": {},
    "fp16_flat": {"fp16": True},
    "fp16_unflat": {"fp16": True, "fp16_no_flatten_grads": True},
    "fp16_lean": {"fp16": True, "memory_efficient_fp16": True},
    "bf16": {"bf16": True},
    "amp": {"amp": True},
}


class Line(BaseFairseqModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(100, 1)

    def forward(self, x):
        return self.linear(x)


class Normalized(Line):
    """A forward changes it."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(100)

    def forward(self, x):
        return self.linear(self.norm(x))


class Task(FairseqTask):
    target_dictionary = None

    def reduce_metrics(self, logging_outputs, criterion):
        pass


class Square(FairseqCriterion):
    def forward(self, model, sample):
        return model(sample["x"]).square().sum(), 1, {}

    @staticmethod
    def logging_outputs_can_be_summed():
        return True


def make(model=Line, device="cpu", with_ema=False, **common):
    """A trainer; `common` are fields of fairseq's configuration, such as fp16=True."""
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    cfg.model = {"_name": "line", "base_layers": 0}
    cfg.common.cpu = device == "cpu"
    cfg.common.fp16_init_scale = 4
    cfg.common.fp16_scale_window = 2
    cfg.common.update(common)
    cfg.ema.store_ema = cfg.ema.ema_fp32 = with_ema
    cfg.ema.ema_decay = 0.9
    cfg.optimization.lr = [0.1]
    cfg.optimizer = {
        **{"_name": "adam", "adam_betas": "(0.9, 0.999)", "adam_eps": 1e-8},
        **{"lr": [0.1], "weight_decay": 0.0, "use_old_adam": False},
    }
    cfg.lr_scheduler = {
        **{"_name": "reduce_lr_on_plateau", "lr": [0.1], "lr_shrink": 0.5, "lr_threshold": 0.0},
        **{"lr_patience": 0, "warmup_updates": 0, "warmup_init_lr": -1},
        **{"maximize_best_checkpoint_metric": False},
    }
    task = Task(None)
    return Trainer(cfg, task, model(), Square(task))


def update(trainer, *, number=None):
    """One update, by the mini-batch of that number."""
    number = trainer.get_num_updates() if number is None else number
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(number))
    with metrics.aggregate(new_root=True):
        trainer.train_step([{"x": x}])


def train(trainer, keeper, num_updates=1):
    """Updates, as fairseq's loop makes them."""
    for _ in range(num_updates):
        update(trainer)
        done = trainer.get_num_updates()
        keeper.record(Boundary(done, {"position": done}))
