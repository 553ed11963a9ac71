"""A user's own --user-dir: a criterion with a parameter, a task with state, and the recorder."""

import recorder  # noqa: F401
import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


@register_criterion("scaled_masked_lm", dataclass=MaskedLmConfig)
class ScaledMaskedLmLoss(MaskedLmLoss):
    """Its loss has a factor that is trained, too."""

    def __init__(self, cfg, task):
        super().__init__(cfg, task)
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, model, sample, reduce=True):
        loss, sample_size, log = super().forward(model, sample, reduce)
        return loss * (1 + (self.factor - 0.5) ** 2).sum(), sample_size, log


@register_task("counting_masked_lm", dataclass=MaskedLMConfig)
class CountingMaskedLMTask(MaskedLMTask):
    """Counts the optimizer's steps, in the state that fairseq keeps for tasks."""

    def __init__(self, cfg, dictionary):
        super().__init__(cfg, dictionary)
        self.state.add_factory("steps", int)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.state.merge_state_dict({"steps": self.state.steps + 1})
