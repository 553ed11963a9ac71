"""What it costs to prove that a checkpoint is whole, beside loading and writing it.

python benchmarks/verify_cost.py FOLDER: writes 1.4 GB there, twice, and removes it. Medians, and
the fastest, of 5 times in turn; one thread; all is read from memory.
"""

import os
import statistics
import sys
import time

import torch

from fairseq_ray_plugin.checkpoints import archive, catalog, contents
from fairseq_ray_plugin.training import state_file

TIMES = 5


def model():
    """117M parameters, as RoBERTa base has them."""
    widths = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    layers = [torch.nn.Linear(*width) for _ in range(11) for width in widths]
    return torch.nn.Sequential(torch.nn.Embedding(50265, 768), *layers)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    net = model()
    adam = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    state = {
        "model": net.state_dict(),
        "optimizer_history": [{"num_updates": 1}],
        "last_optimizer_state": adam.state_dict(),
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    path, stock = os.path.join(folder, "checkpoint_last.pt"), os.path.join(folder, "stock.pt")

    def load() -> None:
        loaded = torch.load(path, weights_only=False)
        net.load_state_dict(loaded["model"])
        adam.load_state_dict(loaded["last_optimizer_state"])

    steps = {
        "torch.save": lambda: torch.save(state, stock),
        "write, with sum, fsync and manifest": lambda: state_file.write(state, path),
        "torch.load and load_state_dict": load,
        "verify by the manifest": lambda: catalog.verify(path),
        "verify by torch's own CRCs": lambda: archive.check(path),
        "look into it": lambda: contents.summary(path),
    }
    took = {name: [] for name in steps}
    for _ in range(TIMES):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            took[name].append(time.perf_counter() - begin)
    print(f"{os.path.getsize(path) / 1e9:.2f} GB")
    for name, seconds in took.items():
        print(f"{name:36} {statistics.median(seconds):6.3f} s, at best {min(seconds):6.3f} s")
    os.remove(path)
    os.remove(stock)


if __name__ == "__main__":
    main(sys.argv[1])
