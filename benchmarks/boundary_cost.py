"""What a boundary costs: copies of what a forward changes, of models with many buffers and none.

    python benchmarks/boundary_cost.py

One thread. Printed is the median time of `StateKeeper.record`, in microseconds.
"""

import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from fairseq_ray_plugin import compat  # noqa: E402

compat.apply()

import torch  # noqa: E402
import trainers  # noqa: E402

from fairseq_ray_plugin.training.boundary import Boundary, StateKeeper  # noqa: E402

NUM_RECORDS = 500


class Deep(trainers.Line):
    """Many layers; they are never called."""

    def __init__(self, num_layers: int, norm: type[torch.nn.Module]):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), norm(512)) for _ in range(num_layers)
        )


def main() -> None:
    torch.set_num_threads(1)
    for num_layers, norm in (
        (100, torch.nn.LayerNorm),
        (17, torch.nn.BatchNorm1d),
        (53, torch.nn.BatchNorm1d),
    ):
        trainer = trainers.make(lambda n=num_layers, norm=norm: Deep(n, norm))
        keeper = StateKeeper(0, 1)
        keeper.attach(trainer, Boundary(0, {}))
        times = []
        for _ in range(NUM_RECORDS):
            begin = time.perf_counter()
            keeper.record(Boundary(0, {}))
            times.append(time.perf_counter() - begin)
        median = statistics.median(times) * 1e6
        print(f"{num_layers} x {norm.__name__}: {median:.0f} us (load {os.getloadavg()[0]:.1f})")


if __name__ == "__main__":
    main()
