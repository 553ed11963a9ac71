"""How long a step of the control loop takes, in truth: seconds of a core, whatever else runs."""

from __future__ import annotations

import gc
import statistics
import time

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.state import State
from fairseq_ray_plugin.faults import Error, Fault
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Advanced,
    Event,
    FromRank,
    Heard,
    Place,
    Raised,
    RankMessage,
    Ready,
    Running,
)
from simulation.cluster import MOST_ANSWERS

SLOTS = 8
NUM_STEPS = 30
PEER_ERROR = Error("RuntimeError", "Connection reset by peer", fault=Fault.GLOO)


class Loop:
    """The control loop, and a clock."""

    def __init__(self) -> None:
        self.state, self.now, self.config = State(), 100.0, ElasticConfig()
        self.nodes: list[str] = []

    def step(self, *events: Event, after: float = 0.2, room: dict[str, int] | None = None) -> float:
        """Seconds that a step took."""
        self.now += after
        heard = dict.fromkeys(self.nodes, self.now)
        observation = protocol.Observation(
            now=self.now, room=room or {}, heard=heard, events=events
        )
        begin = time.thread_time()
        self.state, self.actions = loop.step(self.state, observation, self.config)
        return time.thread_time() - begin

    def place(self, num_nodes: int) -> list[str]:
        """Workers on new nodes, that are not ready yet."""
        nodes = [f"node-{len(self.nodes) + i}" for i in range(num_nodes)]
        self.nodes += nodes
        self.step(room=dict.fromkeys(nodes, SLOTS))
        return [action.worker for action in self.actions if isinstance(action, Place)]

    def all_say(self, message: RankMessage) -> list[Event]:
        says = FromRank(self.state.generation, message)
        return [Heard(name, says) for name in self.state.ranks]


def measure(num_slots: int) -> dict[str, dict[str, float]]:
    """Median and worst, in milliseconds, of steps of each kind."""
    gc.freeze()  # as the driver does
    driver = Loop()
    driver.step(*(Heard(name, Ready()) for name in driver.place(num_slots // SLOTS)))
    driver.step(*driver.all_say(Running(1)))
    driver.step(*driver.all_say(Advanced(10, driver.now)))
    first = FromRank(driver.state.generation, Advanced(11, driver.now))
    quiet = [driver.step(Heard(driver.state.ranks[0], first)) for _ in range(NUM_STEPS)]
    # a few at a time, so that the resize waits for the next
    newcomers = driver.place(max(1, num_slots // SLOTS // 10))
    per_step = -(-len(newcomers) // NUM_STEPS)
    settling = [
        driver.step(*(Heard(name, Ready()) for name in newcomers[begin : begin + per_step]))
        for begin in range(0, len(newcomers), per_step)
    ]
    raised = driver.all_say(Raised(11, PEER_ERROR))
    raising = [
        driver.step(*raised[begin : begin + MOST_ANSWERS])
        for begin in range(0, len(raised), MOST_ANSWERS)
    ]
    kinds = {"quiet": quiet, "10% settle": settling, "all ranks raise at once": raising}
    return {
        kind: {"median_ms": 1000 * statistics.median(times), "worst_ms": 1000 * max(times)}
        for kind, times in kinds.items()
    }
