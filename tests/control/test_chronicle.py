"""What is written down of a run beside its decisions: enough for an account of its time."""

import pytest

from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.accounting.spent import Spent
from fairseq_ray_plugin.activity import Logged, Own, Tally
from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.chronicle import Chronicle
from fairseq_ray_plugin.control.state import Log, State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Advanced,
    Ended,
    Finished,
    FromRank,
    Gone,
    Heard,
    Held,
    Observation,
    Ready,
    Running,
    Saved,
    Start,
    Tell,
)
from fairseq_ray_plugin.report import journal


class Loop:
    """The loop, and the journal that comes of it; who is asked to hold or save does."""

    def __init__(self, **room):
        self.state, self.now, self.lines, self.orders = State(), 100.0, [], []
        self.chronicle = Chronicle(self.state)
        self.step(room=room)

    def step(self, *events, after=0.0, **seen):
        self.now += after
        seen = Observation(now=self.now, events=events, **seen)
        before = self.state
        self.state, actions = loop.step(before, seen, ElasticConfig())
        self.write(*self.chronicle.before(seen, before, self.state, actions))
        for action in actions:
            match action:
                case Log(event):
                    self.write(event)
                case Start():
                    self.write(*self.chronicle.at(action, self.state))
                case Tell():
                    self.orders.append((action.worker, action.order))
        return self

    def write(self, *events):
        self.lines += [journal.line(event) | {"time": self.now, "run": "x"} for event in events]

    def hear(self, worker, says, after=0.0, **seen):
        return self.step(Heard(worker, FromRank(self.state.generation, says)), after=after, **seen)

    def start(self):
        for worker in self.state.ranks:
            self.hear(worker, Running(1))
        return self

    def kinds(self, *kinds):
        return [line for line in self.lines if line["kind"] in kinds]


@pytest.fixture
def two():
    """A generation of two workers, 10 updates on."""
    there = Loop(a=1, b=1)
    there.step(Heard("worker-0", Ready()), Heard("worker-1", Ready()), after=5)
    there.step(after=2).start()
    assert ("worker-0", "worker-1") == there.state.ranks
    there.hear("worker-0", Advanced(1, 0.0, tally=Tally(loading=0.5, training=0.5)), after=1)
    tally = Tally(loading=0.5, training=9.5, logged=Logged(10, 3.5, 1e-4, 64.0))
    return there.hear("worker-0", Advanced(10, 9.0, tally=tally), after=9)


def test_who_is_there_and_which_generation_is_told_to_start_is_written_down(two):
    came, ready = two.kinds("slots")
    assert {"worker-0": "a", "worker-1": "b"} == came["came"]
    assert ["worker-0", "worker-1"] == ready["ready"]
    (begin,) = two.kinds("beginning")
    assert (["worker-0", "worker-1"], None) == (begin["workers"], begin["from"])
    progress = two.kinds("progress")[-1]
    assert (10, 9.5) == (progress["update"], progress["seconds"]["training"])
    assert {"update": 10, "loss": 3.5, "lr": 1e-4, "samples": 64.0} == progress["logged"]


def test_a_stop_is_written_down_with_what_the_survivor_says_of_its_time(two):
    dead, other = two.state.ranks
    two.hear(dead, Ended("was killed by SIGKILL"), after=0.4)
    tally = Tally(loading=0.5, training=9.5, in_flight=0.4)
    two.hear(other, Held(10, two.state.generation, tally), after=0.1)
    two.hear(other, Saved(10, "memory"), after=0.2)
    assert two.kinds("progress")[-1]["final"] and not two.kinds("progress")[0]["final"]
    kinds = [line["kind"] for line in two.lines]
    assert ["stopping", "progress", "stopped", "beginning"] == kinds[-4:]
    two.start().hear(
        "worker-1", Advanced(11, 0.0, tally=Tally(loading=0.3, training=1.0)), after=1.3
    )
    told = account(two.lines)
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots)
    (stop,) = told.failures
    assert "a" == stop.node and 2 * 0.4 == pytest.approx(told.spent[Spent.WASTED_PROGRESS])
    assert stop.seconds == pytest.approx(0.4 + 0.1 + 0.2 + 1.3)


def test_a_worker_that_goes_is_written_down_once(two):
    for _ in range(2):
        two.step(Gone("worker-1", "lost", with_node=True))
    assert [["worker-1"]] == [line["gone"] for line in two.kinds("slots") if "gone" in line]


def test_nothing_comes_after_the_last_line_and_what_is_last_said_comes_before(two):
    for worker in reversed(two.state.ranks):
        two.hear(worker, Finished(12, Tally(loading=0.5, training=11.5)), after=1)
    assert "exit_code" in two.lines[-1]
    assert 12 == two.kinds("progress")[-1]["update"]


def test_a_run_of_weeks_has_few_lines(two):
    before = len(two.lines)
    for second in range(5_000):
        tally = Tally(training=10.0 + second)
        two.hear("worker-0", Advanced(11 + second, float(second), tally=tally), after=1)
    assert 150 < len(two.lines) - before < 400
    assert {"progress"} == {line["kind"] for line in two.lines[before:]}


def test_workers_of_another_loop_are_there_from_the_first(two):
    (line,) = Chronicle(two.state).first()
    assert {"worker-0": "a", "worker-1": "b"} == line.details["there"]
    assert ["worker-0", "worker-1"] == line.details["ready"]
    assert [] == Chronicle(State()).first()


def pass_seconds(there, seconds, batch_s):
    """Two updates a second; a mini-batch each, which takes a rank so long."""
    update = there.state.update
    for second in range(1, seconds + 1):
        for worker in there.state.ranks:
            own = Own(batches=2, computing=2 * batch_s[worker], data=0.0)
            tally = None
            if worker == there.state.ranks[0]:
                tally = Tally(training=there.now, logged=Logged(update, 2.5, 1e-4, 64.0))
            there.hear(worker, Advanced(update + 2 * second, there.now, tally=tally, own=own))
        there.step(after=1)
    return there


def test_a_slow_rank_is_written_down_with_its_node_and_the_slowest_with_progress(two):
    pass_seconds(two, 90, {"worker-0": 0.1, "worker-1": 0.25})
    (slow,) = two.kinds("slow")
    assert (1, "b", 0.25, 0.1) == tuple(slow[key] for key in ("rank", "node", "seconds", "median"))
    assert "rank 1 (on node b) takes 0.25 s for a mini-batch, 150% more" in slow["cause"]
    strides = two.kinds("progress")[-1]["strides"]
    assert 0.1 == strides["median"] and [1, 0] == [there["rank"] for there in strides["slowest"]]
    (told, *_) = account(two.lines).slowest
    assert (1, "b", 1) == (told.rank, told.node, told.num_named)


def test_how_it_gets_on_at_this_moment(two):
    pulse = pass_seconds(two, 90, {"worker-0": 0.1, "worker-1": 0.25}).chronicle.pulse
    beat = pulse.beat(two.state, two.now)
    assert (2, 1, 190) == (beat.world_size, beat.generation, beat.update)
    assert (2.0, 128.0, 2.5) == pytest.approx((beat.updates_per_s, beat.samples_per_s, beat.loss))
    assert (0.1, 0.25) == pytest.approx(beat.strides)
    assert {("b", 1): pytest.approx(2.5)} == beat.slow
    assert 0 == beat.num_left_out and beat.recovery_s is None
    still = pulse.beat(two.state, two.now + 60)
    assert 0.0 == still.updates_per_s == still.samples_per_s, "nobody says anything any more"


def test_while_it_stops_nothing_gets_on_and_afterwards_it_is_said_what_that_cost(two):
    pass_seconds(two, 20, {"worker-0": 0.1, "worker-1": 0.1})
    pulse = two.chronicle.pulse
    two.hear("worker-0", Ended("was killed by SIGKILL"), after=0.4)
    beat = pulse.beat(two.state, two.now)
    assert (2, 0.0) == (beat.world_size, beat.updates_per_s)
    two.hear("worker-1", Held(50, two.state.generation), after=0.1)
    two.hear("worker-1", Saved(50, "memory"), after=0.2).start()
    two.hear("worker-1", Advanced(51, 0.0), after=1)
    beat = pulse.beat(two.state, two.now)
    assert 51 == beat.update and 1.3 == pytest.approx(beat.recovery_s)
    assert beat.strides is None, "another generation begins anew"
