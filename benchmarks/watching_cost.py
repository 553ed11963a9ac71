"""What it costs to watch a run: once a second in its loop, and for each mini-batch in a rank.

`python benchmarks/watching_cost.py`, a minute.
"""

from __future__ import annotations

import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import ray
import torch

from fairseq_ray_plugin import compat

compat.apply()

from fairseq_ray_plugin.accounting.live import Follower  # noqa: E402
from fairseq_ray_plugin.metrics import Metrics  # noqa: E402
from fairseq_ray_plugin.page import words  # noqa: E402
from fairseq_ray_plugin.training import own_time  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import journals  # noqa: E402
from test_metrics import BEAT  # noqa: E402

WATCHED_S = 20


def main() -> None:
    """Print a line for each."""
    torch.set_num_threads(1)
    plain, timed = train_step(False), train_step(True)
    for _ in range(3):  # side by side
        print(f"a mini-batch: {microseconds(plain):.1f} us, timed {microseconds(timed):.1f} us")
    follower, lines = Follower(), journals.long_run(10_000)
    for line in lines:
        follower.hear(line)
    at = lines[-1]["time"] + 1
    live = follower.now(BEAT, at)
    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
    metrics = Metrics("save")
    metrics(live)
    for what, function in (
        ("the account after 10,000 lines", lambda: follower.now(BEAT, at)),
        ("the status line", lambda: words.status(live, at)),
        ("the metrics", lambda: metrics(live)),
    ):
        print(f"{what}: {microseconds(function):.1f} us")

    def second() -> None:
        words.status(follower.now(BEAT, at), at)
        metrics(live)

    watched, idle = cpu_seconds(second), cpu_seconds(lambda: None)
    print(f"CPU in {WATCHED_S} s: {watched:.3f} s with all of it each second, {idle:.3f} s without")


def train_step(is_timed: bool) -> Callable[[], None]:
    """Forward and backward of almost nothing."""
    model, sample = torch.nn.Linear(8, 1), torch.ones(4, 8)
    optimizer = types.SimpleNamespace(backward=lambda loss: loss.backward())
    task = types.SimpleNamespace(train_step=lambda: optimizer.backward(model(sample).sum()))
    if is_timed:
        own_time.attach(own_time.OwnTime(), task, optimizer, time.monotonic)
    return lambda: task.train_step()


def microseconds(function: Callable[[], object], times: int = 2000) -> float:
    """The median."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(taken)


def cpu_seconds(second: Callable[[], None]) -> float:
    """Of this process, threads of Ray's included."""
    begin, end = time.process_time(), time.monotonic() + WATCHED_S
    while time.monotonic() < end:
        second()
        time.sleep(1)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
