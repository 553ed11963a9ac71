"""A simulated cluster: nodes and workers, and what is observed of them."""

from __future__ import annotations

import random

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control.state import Action
from fairseq_ray_plugin.protocol import (
    FromRank,
    Gone,
    Heard,
    Hold,
    Notice,
    Observation,
    Place,
    Publish,
    Ready,
    Remove,
    Save,
    StandBy,
    StandingBy,
    Start,
    Tell,
)
from simulation.arrivals import Change
from simulation.clock import Clock
from simulation.ledger import Ledger, Use
from simulation.ranks import ANSWER_S, Ranks, Worker
from simulation.training import Costs

SURVEY_S = 1.0
MOST_ANSWERS = 1000
"""What the driver hears of in one look: as in distributed.py."""


class Cluster:
    """Nodes that come and go.

    Args:
        slots: of each node.
        max_ranks: mini-batches in an update.
        notice_s: how long before a node goes that is said on it; None: it goes unannounced.
    """

    def __init__(
        self,
        clock: Clock,
        changes: list[Change],
        costs: Costs,
        max_ranks: int,
        slots: int,
        notice_s: float | None,
        seed: int,
    ) -> None:
        self.clock, self.costs, self.max_ranks, self.slots = clock, costs, max_ranks, slots
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.inbox: list[protocol.Event] = []
        self.workers: dict[str, Worker] = {}
        self.ranks = Ranks(clock, self.ledger, costs, max_ranks, self.workers, self.inbox)
        self.on: dict[str, set[str]] = {}
        """Node that is there -> its workers."""

        self.with_room: dict[str, None] = {}
        self.noticed: dict[str, float] = {}
        """Node -> when it will go."""

        self.voices: dict[str, None] = {}
        """Nodes that are heard of."""

        self.fell_silent: dict[str, float] = {}
        """Node that is dead, before the cluster says so -> when it was last heard of."""

        self.losses: list[float] = []
        """When nodes went."""

        self.num_importing = 0
        self.surveyed = 0.0
        acts = {"add": self._add, "remove": self._take_away, "kill": self._kill}
        for change in changes:
            node, at = change.node, change.at
            clock.at(at, lambda act=acts[change.kind], node=node: act(node))
            if notice_s is not None and change.kind == "remove":
                clock.at(at - notice_s, lambda node=node, at=at: self._notice(node, at))

    # nodes

    def _add(self, node: str) -> None:
        self.on[node] = set()
        self._has_room(node)

    def _has_room(self, node: str) -> None:
        self.with_room[node] = None
        self.clock.after(SURVEY_S, lambda: None)  # a look at the cluster then finds it

    def _take_away(self, node: str) -> None:
        workers = self.on.pop(node)
        self.losses.append(self.clock.now)
        self.noticed.pop(node, None)
        self.with_room.pop(node, None)
        if node in self.voices:
            del self.voices[node]
            self.fell_silent[node] = self.clock.now
        for name in workers:
            self._forget(name)
        self.clock.after(self.costs.gone_s, lambda: self._say_gone(node, workers))
        self.ranks.lose(workers)

    def _say_gone(self, node: str, workers: set[str]) -> None:
        self.fell_silent.pop(node, None)
        self.inbox += [Gone(name, "its node has died", with_node=True) for name in sorted(workers)]

    def _notice(self, node: str, at: float) -> None:
        if node in self.on:
            self.noticed[node] = at
            for name in sorted(self.on[node])[:1]:
                self._say_notice(name)

    def _say_notice(self, name: str) -> None:
        left_s = self.noticed[self.workers[name].node] - self.clock.now
        self.inbox.append(Heard(name, Notice("spot instance", left_s)))

    def _kill(self, node: str) -> None:
        """A process of training dies."""
        self.ranks.kill(min(self.on[node]))

    # workers

    def perform(self, actions: list[Action]) -> None:
        holds: dict[Hold, list[str]] = {}
        for action in actions:
            match action:
                case Place(name, node) if node in self.on:
                    self._place(name, node)
                case Remove(name) if name in self.workers:
                    node = self.workers[name].node
                    self._forget(name)
                    self.on[node].discard(name)
                    self._has_room(node)
                case StandBy():
                    # what that saves of a start is not counted
                    self.clock.after(
                        self.costs.restart_s, lambda asked=action: self._stand_by(asked)
                    )
                case Start():
                    self.ranks.start(action)
                case Tell(name, Save() | Publish() as order):
                    self.ranks.save(name, order)
                case Tell(name, Hold() as order):
                    holds.setdefault(order, []).append(name)
        for order, names in holds.items():
            self.clock.after(
                ANSWER_S, lambda names=names, order=order: self.ranks.hold(names, order)
            )

    def _stand_by(self, asked: StandBy) -> None:
        there = (name for name in asked.ranks if name in self.workers)
        self.inbox += [Heard(name, FromRank(asked.generation, StandingBy())) for name in there]

    def _place(self, name: str, node: str) -> None:
        self.workers[name] = Worker(node)
        self.on[node].add(name)
        self.num_importing += 1
        if len(self.on[node]) >= self.slots:
            self.with_room.pop(node, None)
        import_s = self.costs.import_s * self.chance.uniform(1, 1.5)
        self.clock.after(import_s, lambda: self._ready(name))

    def _ready(self, name: str) -> None:
        if name not in self.workers:
            return
        worker = self.workers[name]
        worker.is_ready = True
        self.num_importing -= 1
        self.voices[worker.node] = None
        self.inbox.append(Heard(name, Ready()))
        if worker.node in self.noticed:
            self._say_notice(name)

    def _forget(self, name: str) -> None:
        worker = self.workers.pop(name)
        generation = self.ranks.generation
        if not worker.is_ready:
            self.num_importing -= 1
        elif generation is not None and name in generation.members:
            self.ranks.num_members -= 1

    # what the driver sees

    def observe(self) -> Observation:
        self.ranks.give_sign()
        now = self.clock.now
        room = {}
        if self.with_room and now >= self.surveyed + SURVEY_S:
            self.surveyed = now
            for node in self.with_room:
                there = self.on[node]
                if all(self.workers[name].is_ready for name in there):
                    room[node] = self.slots - len(there)
        events = tuple(self.inbox[:MOST_ANSWERS])
        del self.inbox[:MOST_ANSWERS]
        heard = {**dict.fromkeys(self.voices, now), **self.fell_silent}
        return Observation(now=now, room=room, heard=heard, events=events)

    def pass_time(self, until: float) -> None:
        """Nothing happens up to then; the ledger says what the slots did."""
        generation, num_there = self.ranks.generation, len(self.on) * self.slots
        use = Use.LOSS
        if generation is not None:
            use = Use.TRAINING if generation.trains else generation.pause_use
        num_members = self.ranks.num_members
        num_idle = len(self.workers) - num_members - self.num_importing
        num_left = sum(self.slots - len(self.on[node]) for node in self.noticed)
        self.ledger.spend(
            until - self.clock.now,
            min(num_there, self.max_ranks),
            [
                (use, num_members),
                (Use.READY, num_idle),
                (Use.LEFT, num_left),
                (Use.PLACING, num_there),
            ],
        )
        self.clock.now = until
