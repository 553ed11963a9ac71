"""A user's own --user-dir: forward takes one rank longer.

FAIRSEQ_SLOW is a JSON object: {"rank", "forward"}, seconds for each mini-batch.
"""

import json
import os
import time

import torch.distributed as dist
from fairseq.tasks.fairseq_task import FairseqTask

SLOW = json.loads(os.environ.get("FAIRSEQ_SLOW", "{}"))
train_step = FairseqTask.train_step


def slow_train_step(task, *args, **kwargs):
    if dist.is_initialized() and dist.get_rank() == SLOW.get("rank"):
        time.sleep(SLOW["forward"])
    return train_step(task, *args, **kwargs)


FairseqTask.train_step = slow_train_step
