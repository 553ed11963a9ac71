"""Updates of a model of some size, with memory touched ahead or not; says what they took.

    python warm_updates.py warm|cold|full DDP_BACKEND

full: there is no memory to spare.
"""

import hashlib
import json
import resource
import sys
from pathlib import Path

from fairseq_ray_plugin import compat

compat.apply()

import torch  # noqa: E402
import trainers  # noqa: E402
from fairseq.models import BaseFairseqModel  # noqa: E402
from fairseq.trainer import Trainer  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from fairseq_ray_plugin.training import loaders, warm  # noqa: E402

WIDTH, DEPTH = 1500, 10


class Deep(BaseFairseqModel):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(100, WIDTH)
        self.rest = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x):
        x = self.first(x)
        for linear in self.rest:
            x = linear(x).tanh()
        return x


def digest(trainer):
    """Of all values, without a copy, whose memory would be the next to be used."""
    values = hashlib.sha256()
    for parameter in trainer._model.parameters():
        values.update(parameter.detach().numpy())
    return values.hexdigest()


def main(how, ddp_backend):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    Trainer.use_distributed_wrapper = True  # DDP, though there is one rank
    torch.manual_seed(1)
    trainer = trainers.make(Deep, seed=1)
    # the gradient's memory alone: what the optimizer keeps comes with a state, before the loaders
    trainer.cfg.optimizer = {"_name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": [0.1]}
    trainer.cfg.distributed_training.ddp_backend = ddp_backend
    warmed = warm.Warmed()
    if how == "full":
        warm.SPARED = 1
    if how != "cold":
        random = torch.get_rng_state()
        before = digest(trainer)
        warmed = warm.warm(trainer)
        assert before == digest(trainer)
        assert torch.equal(random, torch.get_rng_state())
    trainer.model, trainer.optimizer  # noqa: B018
    loaders.keep_optimizer_from(trainer, warmed.unused)
    loader = iter(DataLoader(range(100), num_workers=1, multiprocessing_context="fork"))
    next(loader)
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        trainers.update(trainer)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    size = sum(p.nbytes for p in trainer._model.parameters()) // resource.getpagesize()
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    faults = [n / size for n in faults]
    print(json.dumps({"faults": faults, "resident": resident / size, "values": digest(trainer)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
