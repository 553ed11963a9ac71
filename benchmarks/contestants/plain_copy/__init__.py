"""A --user-dir that now and then makes a plain copy of the state, and says how long that took.

FAIRSEQ_COPIES names the file that gets a line for each; FAIRSEQ_COPY_EVERY says at which updates:
half-way between two checkpoints.
"""

import functools
import json
import os
import time

import torch
from fairseq.trainer import Trainer

EVERY = int(os.environ["FAIRSEQ_COPY_EVERY"])


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def with_copies(original):
    @functools.wraps(original)
    def train_step(trainer, *args, **kwargs):
        result = original(trainer, *args, **kwargs)
        update = trainer.get_num_updates()
        line = {"update": update, "time": time.time(), "cpu": time.process_time()}
        if update % EVERY == EVERY // 2:
            trainer.consolidate_optimizer()
            state = {s.data_ptr(): s for s in tensors(trainer.state_dict())}.values()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            copies = [tensor.clone() for tensor in state]
            line["copy_s"] = time.perf_counter() - begin
            line["copy_cpu_s"] = time.process_time() - begin_cpu
            line["bytes"] = sum(copy.nbytes for copy in copies)
            del copies
            line["resumed"], line["resumed_cpu"] = time.time(), time.process_time()
        with open(os.environ["FAIRSEQ_COPIES"], "a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    return train_step


Trainer.train_step = with_copies(Trainer.train_step)
