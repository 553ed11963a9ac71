"""What the ranks of a simulated cluster do, and answer to the control loop's orders."""

from __future__ import annotations

import dataclasses

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.faults import Error, Fault
from fairseq_ray_plugin.protocol import (
    Advanced,
    Checkpointed,
    Ended,
    FromRank,
    Heard,
    Held,
    Hold,
    Publish,
    Raised,
    RankMessage,
    Running,
    Save,
    Saved,
    Snapshot,
    Start,
)
from simulation.clock import Clock
from simulation.ledger import Ledger, Use
from simulation.training import Costs, Generation

ANSWER_S, FORK_S, SIGN_S = 0.02, 0.05, 1.0
FIRST_SNAPSHOT_S, SNAPSHOT_SHARE = 10.0, 250
PEER_ERROR = Error("RuntimeError", "Connection reset by peer", fault=Fault.GLOO)


@dataclasses.dataclass
class Worker:
    node: str
    is_ready: bool = False
    process: Generation | None = None
    """Whose rank it runs, at rest or not."""


class Ranks:
    """The newest generation, and what older ones left at rest.

    Args:
        workers: those that are alive.
        inbox: what the driver hears next.
    """

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        costs: Costs,
        max_ranks: int,
        workers: dict[str, Worker],
        inbox: list[protocol.Event],
    ) -> None:
        self.clock, self.ledger, self.costs, self.max_ranks = clock, ledger, costs, max_ranks
        self.workers, self.inbox = workers, inbox
        self.generation: Generation | None = None
        self.num_members = 0
        """Of its workers, those that are alive."""

        self.completed = 0
        """Updates that stand in the ledger as training, but for those since the last pause."""

        self.signed = 0.0
        self.checkpoint_at = costs.checkpoint_every_s
        self.stops_for = Use.LOSS
        """What the loop is about to stop training for."""

    # what the loop asks for

    def start(self, start: Start) -> None:
        last, there = self.generation, [name for name in start.ranks if name in self.workers]
        generation = self.generation = Generation(start, self.costs, self.max_ranks)
        if last is not None:
            last.is_stopped = True
            generation.pause_use = last.pause_use
        generation.misses_rank = len(there) < len(start.ranks)
        self.num_members = len(there)
        for name in there:
            self.workers[name].process = generation
        work = self.costs.update_s * self.max_ranks
        self.ledger.redo((self.completed - generation.completed) * work)
        self.completed = generation.completed
        self.clock.after(FORK_S, lambda: self._all_say(generation, Running(1)))
        self.clock.after(self.costs.restart_s, lambda: self._loaded(generation))

    def hold(self, names: list[str], order: Hold) -> None:
        generation = self.generation
        if generation is not None and any(self._process(name) is generation for name in names):
            if not order.at_once:
                generation.hold_asked += names
                self._wake_at_boundary(generation)
                return
            if not generation.is_stopped:
                self._stop(generation)
        self._hold(names, order.generation)

    def save(self, name: str, order: Save | Publish) -> None:
        self.clock.after(self.costs.save_s, lambda: self._saved(name, order))

    def _saved(self, name: str, order: Save | Publish) -> None:
        process = self._process(name)
        if isinstance(order, Publish):
            self._say(name, Saved(order.snapshot.update, "checkpoint_last.pt"))
        elif process is not None:
            self._say(name, Saved(process.completed, f"snapshot_{process.number}.pt"))

    # what happens to them

    def lose(self, names: set[str]) -> None:
        """Processes have died, or the nodes under them."""
        generation = self.generation
        if generation is None or generation.members.isdisjoint(names):
            return
        generation.misses_rank = True
        # ranks that are still meeting wait for the one that does not come
        if generation.is_loaded and not generation.is_stopped:
            self._stop(generation)
            raised = Raised(generation.completed, PEER_ERROR)
            self.clock.after(ANSWER_S, lambda: self._all_say(generation, raised))
        generation.pause_use = Use.LOSS

    def kill(self, name: str) -> None:
        self._say(name, Ended("was killed"))
        self.workers[name].process = None
        self.lose({name})

    def give_sign(self) -> None:
        """What rank 0 has said since the last step is one message here."""
        generation, now = self.generation, self.clock.now
        if generation is None or not generation.trains or now < self.signed + SIGN_S:
            return
        at = generation.boundary_after(now) - generation.update_s
        if generation.has_advanced and at > self.signed:
            self.signed = now
            self._say(generation.ranks[0], Advanced(generation.updates(now), at))

    # training

    def _loaded(self, generation: Generation) -> None:
        if generation.is_stopped or generation.misses_rank:
            return
        generation.compute(self.clock.now)
        self._wake_at_boundary(generation)
        self.clock.after(FIRST_SNAPSHOT_S, lambda: self._make_due(generation, "snapshot"))
        self.clock.at(self.checkpoint_at, lambda: self._make_due(generation, "checkpoint"))

    def _make_due(self, generation: Generation, what: str) -> None:
        if not generation.is_stopped:
            generation.due.add(what)
            self._wake_at_boundary(generation)

    def _wake_at_boundary(self, generation: Generation) -> None:
        if generation.trains:
            when, pauses = generation.boundary_after(self.clock.now), generation.num_pauses
            self.clock.at(when, lambda: self._at_boundary(generation, pauses))

    def _at_boundary(self, generation: Generation, num_pauses: int) -> None:
        if not generation.trains or num_pauses != generation.num_pauses:
            return
        if not generation.has_advanced:
            generation.has_advanced = True
            self.signed = self.clock.now
            self._all_say(generation, Advanced(generation.updates(self.clock.now), self.signed))
        if generation.due:
            self._pause(generation)
            generation.pause_use = Use.SNAPSHOT
            self.clock.after(self.costs.save_s, lambda: self._written(generation))
        elif generation.hold_asked:
            self._rest(generation)

    def _written(self, generation: Generation) -> None:
        """Snapshots on two nodes, or a checkpoint."""
        if generation.is_stopped:
            return
        update, due, generation.due = generation.completed, generation.due, set()
        for what in sorted(due):
            every_s = self.costs.save_s * SNAPSHOT_SHARE
            if what == "checkpoint":
                every_s = self.costs.checkpoint_every_s
                self.checkpoint_at = self.clock.now + every_s
                self._say(generation.ranks[0], Checkpointed(update, "checkpoint_last.pt"))
            else:
                for name in sorted(generation.keepers):
                    self._say(name, Snapshot(update, f"update_{update}.pt"))
            self.clock.after(every_s, lambda what=what: self._make_due(generation, what))
        if generation.hold_asked:
            self._rest(generation)
        else:
            generation.compute(self.clock.now)
            if generation.due:
                self._wake_at_boundary(generation)

    def _pause(self, generation: Generation) -> None:
        lost_s = generation.pause(self.clock.now)
        self.ledger.redo(lost_s * len(generation.ranks))
        self.completed = generation.completed

    def _stop(self, generation: Generation) -> None:
        """Every rank rests with the state after the last update."""
        self._pause(generation)
        generation.is_stopped = True
        generation.pause_use = self.stops_for

    def _rest(self, generation: Generation) -> None:
        self._stop(generation)
        self._hold(generation.hold_asked, generation.number)

    # what they say

    def _process(self, name: str) -> Generation | None:
        return self.workers[name].process if name in self.workers else None

    def _hold(self, names: list[str], asked: int) -> None:
        for name in names:
            process = self._process(name)
            held = process.completed if process is not None and process.is_loaded else None
            self._say(name, Held(held, asked))

    def _all_say(self, generation: Generation, message: RankMessage) -> None:
        for name in generation.ranks:
            if self._process(name) is generation:
                self._say(name, message)

    def _say(self, name: str, message: RankMessage) -> None:
        if name in self.workers:
            process = self.workers[name].process or self.generation
            assert process is not None
            self.inbox.append(Heard(name, FromRank(process.number, message)))
