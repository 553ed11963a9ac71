"""A user's own --user-dir: a task that orders its data by the clock."""

import time

import numpy as np
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


@register_task("clockwork_masked_lm", dataclass=MaskedLMConfig)
class ClockworkMaskedLMTask(MaskedLMTask):
    def load_dataset(self, split, **kwargs):
        super().load_dataset(split, **kwargs)
        dataset = self.datasets[split]
        order = np.random.RandomState(time.time_ns() % 2**32).permutation(len(dataset))
        dataset.ordered_indices = lambda: order
