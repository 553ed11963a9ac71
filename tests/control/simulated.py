"""A cluster of the mind: workers, ranks and files that do what the real ones do, in any order.

What a worker says arrives in its order and is never lost while it lives; what it is told may
arrive in another order, or not at all. Ranks advance as a collective lets them: none completes
update N+1 before all have completed N.
"""

from __future__ import annotations

import dataclasses

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.assignment import Found
from fairseq_ray_plugin.protocol import (
    Advanced,
    Blocked,
    Checkpointed,
    Copy,
    Delayed,
    Drop,
    Ended,
    FromRank,
    Gone,
    Heard,
    Held,
    HeldBy,
    Hold,
    InMemory,
    InSaveDir,
    Missing,
    Publish,
    Raised,
    Ready,
    Running,
    Save,
    Saved,
    Snapshot,
    StandBy,
    StandDown,
    StandingBy,
    Start,
    Unreached,
    Unsaved,
)


@dataclasses.dataclass
class Rank:
    generation: int
    number: int
    update: int
    """Completed."""

    asked: int = 0
    """The generation that it is to hold at the end of the update."""

    is_at_rest: bool = False
    trains: bool = True
    """It has neither raised nor come to the end."""

    has_told: bool = False
    """That the generation has advanced."""


@dataclasses.dataclass
class Worker:
    node: str
    gpu: str = ""
    is_ready: bool = False
    is_blocked: bool = False
    """What its ranks have started cannot be ended."""

    rank: Rank | None = None
    standby: StandBy | None = None
    """What its rank stands by for."""

    has_lost_standby: bool = False
    void: int = 0
    generation: int = 0
    """Of its rank, or of the last that it had; so are the next two."""

    number: int = -1
    world_size: int = 0
    says: list = dataclasses.field(default_factory=list)
    """Not arrived yet."""

    orders: list = dataclasses.field(default_factory=list)
    """On their way to it: StandBy, Start or an order."""

    due: list = dataclasses.field(default_factory=list)
    """Updates of checkpoints that are to be written, each with its rank's generation."""

    def say(self, message, generation=None):
        if generation is None:
            generation = self.rank.generation if self.rank else 0
        self.says.append(FromRank(generation, message))


@dataclasses.dataclass
class Node:
    slots: int
    has_gpus: bool = False
    is_silent: bool = False
    last_heard: float = 0.0
    files: dict = dataclasses.field(default_factory=dict)
    """Path -> update of the snapshot in it."""


class Cluster:
    """Truth, of which the loop sees what arrives."""

    def __init__(self):
        self.now = 100.0
        self.nodes: dict[str, Node] = {}
        self.workers: dict[str, Worker] = {}
        self.draining: dict[str, float] = {}
        self.events: list = []
        """Not of a worker: deaths, and orders that did not arrive."""

        self.num_nodes = 0
        self.num_files = 0
        self.checkpoint: int | None = None
        """The update in the save dir."""

        self.save_dir_is_full = self.memory_is_full = False

    # what happens

    def add_node(self, slots):
        has_gpus = self.num_nodes % 2 == 0
        self.nodes[f"node-{self.num_nodes}"] = Node(slots, has_gpus, last_heard=self.now)
        self.num_nodes += 1

    def remove_node(self, name):
        del self.nodes[name]
        self.draining.pop(name, None)
        for worker in [w for w, there in self.workers.items() if there.node == name]:
            self._lose(worker, with_node=True)

    def kill_worker(self, name):
        self._lose(name, with_node=False)

    def _lose(self, name, with_node):
        del self.workers[name]
        self.events.append(Gone(name, "killed", with_node))

    def kill_rank(self, name, crashed=False):
        worker = self.workers[name]
        worker.say(Ended("was killed", crashed))
        worker.rank = None

    def fail_rank(self, name, error):
        worker = self.workers[name]
        worker.rank.trains = False
        worker.say(Raised(worker.rank.update, error))

    def running(self):
        """Worker -> rank, of the newest generation that began."""
        newest = max((w.rank.generation for w in self.workers.values() if w.rank), default=0)
        return {
            name: w.rank
            for name, w in self.workers.items()
            if w.rank and w.rank.generation == newest
        }

    def can_advance(self, world_size):
        """The ranks that can complete an update now."""
        ranks = self.running()
        moving = {n: r for n, r in ranks.items() if r.trains and not r.is_at_rest}
        if not ranks:
            return []
        behind = min(r.update for r in ranks.values())
        if any(r.update > behind for r in ranks.values()):  # all gradients are in
            return [n for n, r in moving.items() if r.update == behind]
        return list(moving) if len(moving) == world_size else []

    def advance(self, names):
        for name in names:
            worker = self.workers[name]
            rank = worker.rank
            rank.update += 1
            rank.has_told = True
            worker.say(Advanced(rank.update, self.now))
            if rank.asked:
                rank.is_at_rest = True
                worker.say(Held(rank.update, rank.asked))

    def put_by(self, name):
        worker = self.workers[name]
        path = self._file(worker.node, worker.rank.update)
        worker.say(Snapshot(worker.rank.update, path))

    def checkpoint_is_due(self, name):
        worker = self.workers[name]
        if not self.memory_is_full:
            self.put_by(name)
            worker.due.append((worker.rank.update, worker.rank.generation))

    def write_checkpoint(self, name):
        """Behind training: its rank may be no more, or of a later generation."""
        worker = self.workers[name]
        update, generation = worker.due[0]
        if self.save_dir_is_full:
            worker.say(Delayed(update, "no room"), generation)
        else:
            worker.due.pop(0)
            # an older state does not take the place of a newer one
            self.checkpoint = max(self.checkpoint or 0, update)
            worker.say(Checkpointed(update, "checkpoint_last.pt"), generation)

    def _file(self, node, update):
        path = f"{node}/file-{self.num_files}"
        self.num_files += 1
        self.nodes[node].files[path] = update
        return path

    # what the loop sees

    def observation(self, workers, signal=None):
        """Also what has been said by these workers, as much of it as is given."""
        events, self.events = self.events, []
        for name, number in workers.items():
            if (worker := self.workers.get(name)) and not self.nodes[worker.node].is_silent:
                events += [Heard(name, says) for says in worker.says[:number]]
                del worker.says[:number]
        for node in self.nodes.values():
            if not node.is_silent:
                node.last_heard = self.now
        taken = [worker.node for worker in self.workers.values()]
        room = {
            name: free
            for name, node in self.nodes.items()
            if (free := node.slots - taken.count(name)) > 0 and name not in self.draining
        }
        return protocol.Observation(
            now=self.now,
            room=room,
            draining=dict(self.draining),
            heard={name: node.last_heard for name, node in self.nodes.items()},
            events=tuple(events),
            signal=signal,
        )

    def found(self):
        """What the workers that can be reached tell another loop; the others are done without."""
        for name in [n for n, w in self.workers.items() if self.nodes[w.node].is_silent]:
            del self.workers[name]
        return {name: self._found(worker) for name, worker in self.workers.items()}

    def _found(self, worker):
        rank = worker.rank or Rank(worker.generation, worker.number, 0, is_at_rest=True)
        files = self.nodes[worker.node].files.items()
        return Found(
            node=worker.node,
            is_ready=worker.is_ready,
            num_heard=0,
            newest=max(
                rank.generation,
                worker.void,
                worker.standby.generation if worker.standby else 0,
            ),
            generation=rank.generation,
            rank=rank.number,
            world_size=worker.world_size,
            gpu=worker.gpu,
            is_at_rest=rank.is_at_rest or not rank.trains,
            update=rank.update if rank.has_told else 0,
            pid=1,
            snapshots=tuple(Copy(update, InMemory(worker.node, path)) for path, update in files),
        )

    # what the loop asks for

    def perform(self, action):
        match action:
            case protocol.Place(worker, node):
                if node in self.nodes:
                    self.workers[worker] = Worker(node, self._free_gpu(node))
                else:
                    self.events.append(Gone(worker, "its node has died", True))
            case protocol.Remove(worker):
                self.workers.pop(worker, None)
            case StandBy() | Start():
                for worker in action.ranks:
                    if worker in self.workers:
                        self.workers[worker].orders.append(action)
            case protocol.Tell(worker, order):
                if worker in self.workers:
                    self.workers[worker].orders.append(order)

    def _free_gpu(self, node):
        """As Ray gives them out: the first that no worker there has."""
        if not self.nodes[node].has_gpus:
            return ""
        taken = {worker.gpu for worker in self.workers.values()}
        numbers = range(self.nodes[node].slots)
        free = (gpu for number in numbers if (gpu := f"GPU-{number}-{node}") not in taken)
        return next(free, "")

    def become_ready(self, name):
        worker = self.workers[name]
        worker.is_ready = True
        worker.says.append(Ready(worker.gpu))

    def lose_order(self, name, number):
        worker = self.workers[name]
        order = worker.orders.pop(number % len(worker.orders))
        if not isinstance(order, Drop | StandDown):
            self.events.append(Unreached(name, order, "unavailable"))

    def deliver_order(self, name, number=0):
        worker = self.workers[name]
        match worker.orders.pop(number % len(worker.orders)):
            case StandBy() as standby:
                self._stand_by(name, worker, standby)
            case Start() as start:
                self._start(name, worker, start)
            case Hold() as hold:
                self._hold(worker, hold)
            case Save(as_checkpoint):
                self._save(worker, as_checkpoint)
            case Publish(copy):
                files = self.nodes[worker.node].files
                if self.save_dir_is_full or copy.place.path not in files:
                    worker.say(Unsaved("no"))
                else:
                    self.checkpoint = files[copy.place.path]
                    worker.say(Saved(copy.update, "checkpoint_last.pt"))
            case Drop(paths):
                for path in paths:
                    self.nodes[worker.node].files.pop(path, None)
            case StandDown(generation):
                if worker.standby and worker.standby.generation == generation:
                    worker.standby = None

    def _stand_by(self, name, worker, standby):
        if standby.ranks[0] not in self.workers:
            self.events.append(Unreached(name, standby, "no address"))
        elif standby.generation > max(worker.void, worker.generation):
            worker.standby, worker.has_lost_standby = standby, False

    def stand_by(self, name):
        """All is made that can be."""
        worker = self.workers[name]
        worker.say(StandingBy(), worker.standby.generation)

    def kill_standby(self, name):
        worker = self.workers[name]
        worker.has_lost_standby = True
        worker.say(Ended("was killed"), worker.standby.generation)

    def _start(self, name, worker, start):
        if start.generation <= worker.void:
            return
        # without rank 0's address nobody starts
        if start.ranks[0] not in self.workers:
            self.events.append(Unreached(name, start, "no address"))
            return
        number = start.ranks.index(name)
        place = start.source.place if start.source else None
        if number == 0 and isinstance(place, InMemory) and not self._has(place):
            worker.say(Missing(place.path), start.generation)
            return
        there = worker.standby
        # else it was another loop, now dead, that had used the number: it has met others, elsewhere
        if there and (there.generation, there.ranks) == (start.generation, start.ranks):
            if worker.has_lost_standby:
                return
        worker.standby = None
        if worker.is_blocked:
            worker.rank, worker.generation, worker.number = None, start.generation, number
            worker.world_size = len(start.ranks)
            worker.say(Blocked("process 7 outlives SIGKILL"), start.generation)
            return
        assert not isinstance(place, HeldBy), "a generation goes on from a file"
        update = start.source.update if start.source else self.checkpoint or 0
        if isinstance(place, InSaveDir):
            assert self.checkpoint is not None
            update = self.checkpoint
        worker.rank = Rank(start.generation, number, update)
        worker.generation, worker.number = start.generation, number
        worker.world_size = len(start.ranks)
        worker.say(Running(1))

    def _has(self, place):
        return place.node in self.nodes and place.path in self.nodes[place.node].files

    def _hold(self, worker, hold):
        rank = worker.rank
        if rank and hold.generation < rank.generation:
            return  # it has been overtaken
        worker.void = max(worker.void, hold.generation)
        if worker.standby and worker.standby.generation <= worker.void:
            worker.standby = None
        if rank is None:
            worker.say(Held(None, hold.generation))
        elif hold.at_once or not rank.trains or rank.is_at_rest:
            rank.is_at_rest = True
            worker.say(Held(rank.update, hold.generation))
        else:
            rank.asked = hold.generation

    def _save(self, worker, as_checkpoint):
        rank = worker.rank
        is_full = self.save_dir_is_full if as_checkpoint else self.memory_is_full
        if rank is None or is_full:
            worker.say(Unsaved("no"))
        elif as_checkpoint:
            self.checkpoint = rank.update
            worker.say(Saved(rank.update, "checkpoint_last.pt"))
        else:
            worker.say(Saved(rank.update, self._file(worker.node, rank.update)))
