"""One simulated run: the control loop's own `step`, on a simulated cluster."""

from __future__ import annotations

import math
import time
from collections import Counter

from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.failures import Cause
from fairseq_ray_plugin.control.state import End, Log, State, Stopping, Training
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.report.journal import EventKind
from simulation.arrivals import Change
from simulation.clock import Clock
from simulation.cluster import Cluster
from simulation.ledger import Use
from simulation.training import Costs

TICK_S, LONGEST_TICK_S = 0.2, 30.0
TURN_S = 0.02
"""A step and its actions take a while; what happens meanwhile is observed together."""

STOPS_FOR = {Cause.RESIZED: Use.RESIZE, Cause.PREEMPTED: Use.LEAVING}


class Simulation:
    """A run on a cluster whose nodes come and go as `changes` say; see `Cluster`."""

    def __init__(
        self,
        changes: list[Change],
        costs: Costs,
        max_ranks: int,
        slots: int = 1,
        notice_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock, changes, costs, max_ranks, slots, notice_s, seed)
        self.ledger = self.cluster.ledger
        self.config, self.max_ranks = ElasticConfig(), max_ranks
        self.state = State()
        self.stops: Counter[str] = Counter()
        """Cause -> stops."""

        self.outcome: str | None = None
        """Why the run has ended, if it has."""

        self.began: float | None = None
        """When the first update was complete, from which on all is counted."""

        self.happened = 0.0
        self.wall_s: list[float] = []
        """What each step of the loop took in truth."""

    def run(self, length_s: float) -> Simulation:
        """Simulate up to a time, or the run's end."""
        while self.outcome is None:
            next_turn = self.clock.now + TURN_S
            due = min(max(self.clock.next_at, next_turn), self._next_tick())
            self.cluster.pass_time(min(due, length_s))
            if due >= length_s:
                break
            if self.clock.act():
                self.happened = self.clock.now
            self._step()
        return self

    @property
    def mtbf_s(self) -> float:
        """Mean time between losses; nodes that go together are one."""
        began = self.began or 0.0
        losses = {at for at in self.cluster.losses if at > began}
        return (self.clock.now - began) / len(losses) if losses else math.inf

    def _next_tick(self) -> float:
        """Often after something has happened, then more and more rarely."""
        if self.cluster.inbox:
            return self.clock.now + TURN_S
        state = self.state
        is_quiet = (
            isinstance(state.phase, Training)
            and state.advanced
            and len(state.workers) == len(state.ranks)
            and not self.cluster.fell_silent
        )
        since = self.clock.now - self.happened
        pause = LONGEST_TICK_S if is_quiet else min(max(TICK_S, 0.1 * since), LONGEST_TICK_S)
        return self.clock.now + pause

    def _step(self) -> None:
        observation = self.cluster.observe()
        begin = time.perf_counter()
        self.state, actions = loop.step(self.state, observation, self.config, self.max_ranks)
        self.wall_s.append(time.perf_counter() - begin)
        phase = self.state.phase
        cause = phase.cause if isinstance(phase, Stopping) else None
        self.cluster.ranks.stops_for = STOPS_FOR.get(cause, Use.LOSS)
        for action in actions:
            match action:
                case Log(event) if event.kind is EventKind.STOPPED:
                    self.stops[(event.cause or "").partition(":")[0]] += 1
                case End(_, message):
                    self.outcome = message
        self.cluster.perform(actions)
        if self.began is None and self.state.advanced:
            self.began = self.clock.now
            self.ledger.clear()
