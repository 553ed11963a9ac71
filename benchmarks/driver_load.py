"""How many nodes one driver can hear: real Ray calls, as many as so many nodes would make.

    python benchmarks/driver_load.py [NODES ...]

A few real workers (without training) stand for many: each is asked as many times at once as there
would be nodes for it, by the product's own `RayCluster`. Printed are how stale what the driver
knows of a node gets (a node is given up after 3 s), and the driver's share of a core.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import types

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from fairseq_ray_plugin import distributed
from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.state import State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.worker.worker import HEARTBEAT_S

NUM_ACTORS = 4
SECONDS = 20.0


class Speaker:
    """Says what a worker says when nothing happens."""

    async def beat(self) -> None:
        import asyncio

        await asyncio.sleep(HEARTBEAT_S)


def main() -> None:
    ray.init(num_cpus=NUM_ACTORS, include_dashboard=False, logging_level="ERROR")
    actors = [ray.remote(Speaker).options(num_cpus=1).remote() for _ in range(NUM_ACTORS)]
    ray.get([actor.beat.remote() for actor in actors])
    print("nodes | age of the stalest, s: median, worst | results/s | driver, of a core")
    for nodes in map(int, sys.argv[1:] or ("125", "500", "1250")):
        measure(actors, nodes)
    ray.shutdown()


def measure(actors: list, nodes: int) -> None:
    config = ElasticConfig(cpu=True)
    cluster = distributed.RayCluster(types.SimpleNamespace(run_id="load"), config, None)
    state = State()
    for number in range(nodes):
        worker, node = f"worker-{number}", f"node-{number}"
        cluster.actors[worker] = actors[number % len(actors)]
        cluster.nodes[worker] = node
        cluster.heard[node] = cluster.now
        cluster.messages_heard[worker] = 0
        cluster._ask_again(worker, "beat")
    begin, cpu, ages, count = time.monotonic(), time.process_time(), [], 0
    while time.monotonic() - begin < SECONDS:
        before = cluster.now
        observation = cluster.observe()
        count += sum(time_heard > before for time_heard in observation.heard.values())
        state, _ = loop.step(state, observation, config)
        ages.append(observation.now - min(observation.heard.values()))
    seconds = time.monotonic() - begin
    share = (time.process_time() - cpu) / seconds
    ages = ages[len(ages) // 4 :]  # at first all speak at once
    print(
        f"{nodes} | {statistics.median(ages):.2f}, {max(ages):.2f} | {count / seconds:.0f} "
        f"| {share:.2f}",
        flush=True,
    )
    cluster.actors.clear()
    cluster.surveyor.close()


if __name__ == "__main__":
    main()
