"""Whatever happens in whatever order: no state is dropped, and training goes on or ends."""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated import Cluster

from fairseq_ray_plugin.control import copies, loop, takeover
from fairseq_ray_plugin.control.state import End, Gathering, Log, Over, Standing, State
from fairseq_ray_plugin.faults import Error, Fault
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Ended, FromRank, Heard, Held, InMemory, Raised, Start
from fairseq_ray_plugin.report.journal import line

SECONDS = st.sampled_from([0.0, 0.1, 0.3, 1.0, 3.5, 12.0])
WHICH = st.integers(0, 7)
BOUND_S = 900.0
"""However bad it was, when all is well again every worker trains within so long, or it is over."""


class AnyOrder(RuleBasedStateMachine):
    """The loop, and a cluster to which anything may happen."""

    @initialize(
        nodes=st.lists(st.integers(1, 2), min_size=1, max_size=3),
        max_ranks=st.sampled_from([None, None, 3]),
        min_workers=st.integers(1, 2),
        is_training=st.sampled_from([True, True, False]),
    )
    def begin(self, nodes, max_ranks, min_workers, is_training):
        self.cluster = Cluster()
        for slots in nodes:
            self.cluster.add_node(slots)
        self.config = ElasticConfig(min_workers=min_workers)
        self.max_ranks = max_ranks
        self.state = State()
        self.end = None
        self.held = {}
        """Worker -> the update that it has told the loop it holds, and still does."""

        self.lines, self.signal = [], None
        self.world_size = 0
        self.is_wrong = self.was_full = False
        self.cleared = set()
        while is_training and self.state.update < 3 and self.cluster.now < 150:
            self.all_goes_well()

    # one step of the loop

    def see(self, workers=None, signal=None):
        observation = self.cluster.observation(workers or {}, signal)
        self.remember(observation.events)
        self.state, actions = loop.step(self.state, observation, self.config, self.max_ranks)
        self.perform(actions)

    def perform(self, actions):
        for action in actions:
            match action:
                case Log(event):
                    self.lines.append(line(event))
                case Start():
                    self.check_start(action)
                    self.world_size = len(action.ranks)
                    for worker in action.ranks:
                        self.held.pop(worker, None)
                case End():
                    self.end = action
                    self.check_end(action)
            self.cluster.perform(action)
        self.held = {name: u for name, u in self.held.items() if name in self.state.workers}

    def remember(self, events):
        for event in events:
            if isinstance(event, Heard) and isinstance(event.says, FromRank):
                says = event.says.says
                if isinstance(says, Held | Raised) and says.update is not None:
                    there = self.cluster.workers.get(event.worker)
                    if there and there.rank and there.rank.generation == event.says.generation:
                        self.held[event.worker] = says.update
                elif isinstance(says, Ended):
                    self.held.pop(event.worker, None)

    def in_reach(self):
        """Updates after which somebody who was heard of lately has told that it has the state."""
        cluster, known = self.cluster, self.state.workers
        nodes = {
            name: node for name, node in cluster.nodes.items() if cluster.now - node.last_heard < 3
        }
        given_up = {
            name
            for name, worker in known.items()
            if worker.standing is Standing.SILENT and cluster.now - worker.since >= copies.AWAY_S
        }
        there = {
            name: worker
            for name, worker in cluster.workers.items()
            if name in known.keys() - given_up and worker.node in nodes
        }
        held = [self.held[n] for n, w in there.items() if n in self.held and w.rank]
        kept = [
            copy.update
            for node, copy in self.state.snapshots.items()
            if node in {w.node for w in there.values()} and copy.place.path in nodes[node].files
        ]
        told = self.state.checkpoint
        return [*held, *kept, told.update if told else 0]

    def check_start(self, start):
        self.is_wrong = True
        update = self.cluster.checkpoint or 0  # it may be newer than what was told of it
        if start.source and isinstance(start.source.place, InMemory):
            update = start.source.update
        assert update >= max(self.in_reach()), "a fresher copy is in reach"
        if start.source and isinstance(start.source.place, InMemory):
            place = start.source.place
            if place.node in self.cluster.nodes.keys() - self.cleared:
                assert place.path in self.cluster.nodes[place.node].files, "it was deleted"
            assert place.path == start.nearby[place.node]
        for node in start.nearby.keys() & (self.cluster.nodes.keys() - self.cleared):
            there = self.cluster.nodes[node].files.get(start.nearby[node])
            assert start.source.update == there, "a node's own copy"
        self.is_wrong = False

    def check_end(self, end):
        self.is_wrong = True
        if not self.was_full:
            assert (self.cluster.checkpoint or 0) >= max(self.in_reach()), "it was not saved"
        self.is_wrong = False

    # what can happen

    @rule(seconds=SECONDS)
    def time_passes(self, seconds):
        self.cluster.now += seconds
        self.see()

    @rule(number=st.integers(1, 5), which=WHICH)
    def something_is_heard(self, number, which):
        if name := self.pick(self.cluster.workers, which):
            self.see({name: number})

    @rule(turns=st.integers(1, 4))
    def all_goes_well_for_a_while(self, turns):
        for _ in range(turns):
            self.all_goes_well()

    @rule()
    def all_is_heard(self):
        self.see(dict.fromkeys(self.cluster.workers, 99))

    @rule(which=WHICH, number=WHICH, is_lost=st.sampled_from([False, False, False, True]))
    def an_order_arrives_or_is_lost(self, which, number, is_lost):
        waiting = [name for name, worker in self.cluster.workers.items() if worker.orders]
        if name := self.pick(waiting, which):
            (self.cluster.lose_order if is_lost else self.cluster.deliver_order)(name, number)

    @rule()
    def all_orders_arrive(self):
        for name, worker in self.cluster.workers.items():
            while worker.orders:
                self.cluster.deliver_order(name)

    @rule(which=WHICH)
    def a_worker_is_ready(self, which):
        if name := self.pick(self.importing(), which):
            self.cluster.become_ready(name)

    @rule()
    def all_workers_are_ready(self):
        for name in self.importing():
            self.cluster.become_ready(name)

    @rule(number=st.integers(1, 8))
    def ranks_stand_by(self, number):
        for name in self.standing_by()[:number]:
            self.cluster.stand_by(name)

    @rule(which=WHICH)
    def a_rank_that_stands_by_dies(self, which):
        if name := self.pick(self.standing_by(), which):
            self.cluster.kill_standby(name)

    @rule(number=st.integers(1, 8))
    def ranks_advance(self, number):
        self.cluster.advance(self.cluster.can_advance(self.world_size)[:number])

    @rule(which=WHICH, crashed=st.booleans())
    def a_training_process_dies(self, which, crashed):
        if name := self.pick(self.with_rank(), which):
            self.cluster.kill_rank(name, crashed)

    @rule(which=WHICH, is_blocked=st.booleans())
    def what_a_rank_has_started_cannot_be_ended_or_can_again(self, which, is_blocked):
        if name := self.pick(self.cluster.workers, which):
            self.cluster.workers[name].is_blocked = is_blocked

    @rule(which=WHICH, fault=st.sampled_from(Fault))
    def a_rank_raises(self, which, fault):
        training = [n for n in self.with_rank() if self.cluster.workers[n].rank.trains]
        if name := self.pick(training, which):
            # another one each time: the same would end the run
            kind = f"Error{'abcdefgh'[which]}{chr(97 + int(self.cluster.now) % 26)}"
            self.cluster.fail_rank(name, Error(kind, "bad", fault=fault))

    @rule(which=WHICH)
    def a_worker_dies(self, which):
        if name := self.pick(self.cluster.workers, which):
            self.cluster.kill_worker(name)

    @rule(slots=st.integers(1, 2))
    def a_node_joins(self, slots):
        self.cluster.add_node(slots)

    @precondition(lambda self: len(self.cluster.nodes) > 1)
    @rule(which=WHICH)
    def a_node_dies(self, which):
        self.cluster.remove_node(self.pick(self.cluster.nodes, which))

    @precondition(lambda self: len(self.cluster.nodes) > 1)
    @rule(which=WHICH, left=st.sampled_from([0.0, 5.0, 120.0]))
    def a_node_is_to_go(self, which, left):
        self.cluster.draining[self.pick(self.cluster.nodes, which)] = self.cluster.now + left
        self.see()

    @rule(which=WHICH, is_silent=st.booleans())
    def a_node_is_cut_off_or_back(self, which, is_silent):
        if name := self.pick(self.cluster.nodes, which):
            self.cluster.nodes[name].is_silent = is_silent

    @rule(which=WHICH)
    def a_snapshot_is_put_by(self, which):
        training = [n for n, r in self.cluster.running().items() if r.trains and not r.is_at_rest]
        if name := self.pick(training, which):
            self.cluster.put_by(name)

    @rule()
    def a_checkpoint_is_due(self):
        for name, rank in self.cluster.running().items():
            if rank.number == 0 and rank.trains and not rank.is_at_rest:
                self.cluster.checkpoint_is_due(name)

    @rule(which=WHICH)
    def a_checkpoint_is_written_or_not(self, which):
        if name := self.pick([n for n, w in self.cluster.workers.items() if w.due], which):
            self.cluster.write_checkpoint(name)

    @rule(which=WHICH)
    def somebody_clears_a_nodes_memory(self, which):
        if name := self.pick(self.cluster.nodes, which):
            self.cluster.nodes[name].files.clear()
            self.cleared.add(name)

    @rule(memory=st.booleans(), save_dir=st.booleans())
    def disks_are_full_or_not(self, memory, save_dir):
        self.cluster.memory_is_full, self.cluster.save_dir_is_full = memory, save_dir
        self.was_full |= save_dir

    @rule(number=st.sampled_from([2, 15]), is_meant=st.sampled_from([False] * 9 + [True]))
    def the_driver_is_told_to_end(self, number, is_meant):
        if is_meant:
            self.signal = number
            self.see(signal=number)

    @precondition(lambda self: not isinstance(self.state.phase, Over))
    @rule()
    def the_loop_is_killed_and_another_takes_over(self):
        self.state, actions = takeover.take_over(self.cluster.found(), self.lines, self.cluster.now)
        self.perform(actions)
        if self.signal is not None:  # whoever follows the run tells it again
            self.see(signal=self.signal)

    # what must hold

    @invariant()
    def a_worker_of_the_loop_stands_as_it_says(self):
        for name in self.state.ranks if hasattr(self, "state") else ():
            if name in self.state.workers:
                assert self.state.workers[name].rank < len(self.state.ranks)

    def teardown(self):
        """All is well again, but what was lost is lost."""
        if not hasattr(self, "state") or self.is_wrong:
            return
        cluster = self.cluster
        cluster.memory_is_full = cluster.save_dir_is_full = False
        for node in cluster.nodes.values():
            node.is_silent = False
        for worker in cluster.workers.values():
            worker.is_blocked = False
        cluster.add_node(2)
        begin, before = cluster.now, self.state.update
        while not self.is_well(before):
            assert cluster.now < begin + BOUND_S, f"stuck: {self.state}"
            self.all_goes_well()

    def all_goes_well(self):
        self.cluster.now += 0.5
        self.all_workers_are_ready()
        self.all_orders_arrive()
        self.ranks_stand_by(99)
        for _ in range(2):
            self.ranks_advance(99)
        self.all_is_heard()

    def is_well(self, before):
        if isinstance(self.state.phase, Over):
            return True
        if self.state.ending is not None or isinstance(self.state.phase, Gathering):
            return False
        stay = [
            name
            for name, worker in self.cluster.workers.items()
            if worker.node not in self.cluster.draining
            and self.state.nodes.get(worker.node) is None
            and worker.gpu not in self.state.gpus
        ]
        wanted = len(stay) if self.max_ranks is None else min(self.max_ranks, len(stay))
        training = [n for n, r in self.cluster.running().items() if r.trains and not r.is_at_rest]
        return len(training) >= max(wanted, 1) and self.state.update > before

    def pick(self, names, which):
        names = sorted(names)
        return names[which % len(names)] if names else None

    def importing(self):
        return [name for name, worker in self.cluster.workers.items() if not worker.is_ready]

    def standing_by(self):
        there = self.cluster.workers.items()
        return [name for name, w in there if w.standby and not w.has_lost_standby]

    def with_rank(self):
        return [name for name, worker in self.cluster.workers.items() if worker.rank]


EXAMPLES = os.environ.get("ANY_ORDER_EXAMPLES")
"""How many stories are tried, other ones each time; without it, few, and always the same."""

TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=int(EXAMPLES or 300),
    derandomize=EXAMPLES is None,
    stateful_step_count=60,
    deadline=None,
    database=None,
)
