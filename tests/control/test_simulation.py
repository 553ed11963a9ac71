"""The control loop on simulated clusters: hours in seconds, and every second accounted for."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from simulation import arrivals, young_daly
from simulation.arrivals import Change
from simulation.ledger import Use
from simulation.run import Simulation
from simulation.training import ROBERTA, SMALL


def nodes(number):
    return [Change(0.0, "add", f"node-{i}") for i in range(number)]


def seconds(run, use, num_slots):
    """Of all slots together."""
    return run.ledger.spent[use] / num_slots


@pytest.mark.parametrize("costs", [SMALL, ROBERTA], ids=["small", "roberta"])
@pytest.mark.parametrize("notice_s", [None, 120.0])
def test_every_second_of_every_slot_is_accounted_for(costs, notice_s):
    trace = arrivals.bamboo("g4dn")
    run = Simulation(trace, costs, max_ranks=32, notice_s=notice_s).run(trace[-1].at)
    assert run.outcome is None
    there, begins = 0.0, {}
    for change in trace:
        if change.kind == "add":
            begins[change.node] = change.at
        else:
            there += max(0.0, change.at - max(run.began, begins.pop(change.node)))
    there += sum(trace[-1].at - at for at in begins.values())
    assert there == pytest.approx(run.ledger.there)
    assert there == pytest.approx(sum(run.ledger.spent.values()))
    assert all(spent >= 0 for spent in run.ledger.spent.values())


def test_the_time_that_counts_as_training_is_that_of_the_updates_completed():
    changes = arrivals.by_chance(8, mtbf_s=1000.0, length_s=5000.0)
    run = Simulation(changes, ROBERTA, max_ranks=8).run(5000.0)
    assert run.stops["LOST"] > 10
    updates = run.ledger.spent[Use.TRAINING] / (ROBERTA.update_s * 8)
    assert updates == pytest.approx(run.state.update - 1, abs=30), "it heard of them by and by"
    generation = run.cluster.ranks.generation
    assert updates == pytest.approx(generation.updates(run.clock.now) - 1, abs=1)


def test_where_nothing_fails_all_is_training_but_for_snapshots():
    run = Simulation(nodes(32), SMALL, max_ranks=32).run(86_400.0)
    assert {} == run.stops
    assert run.ledger.share(Use.TRAINING) > 0.995
    assert 1 == pytest.approx(run.ledger.share(Use.TRAINING) + run.ledger.share(Use.SNAPSHOT))


def test_a_loss_costs_in_simulation_what_it_was_measured_to_cost():
    for kind, measured_s in (("kill", 0.49), ("remove", 1.43)):
        changes = [*nodes(2), Change(100.0, kind, "node-1")]
        run = Simulation(changes, SMALL, max_ranks=2).run(130.0)
        lost_s = sum(run.ledger.spent[use] for use in (Use.LOSS, Use.REDONE))
        ranks = 2 if kind == "kill" else 1
        first_update_s = SMALL.update_s * 2 / ranks
        assert measured_s == pytest.approx(lost_s / ranks + first_update_s, abs=0.25)


def test_growth_does_not_starve_where_a_node_comes_every_5_s():
    changes = [Change(5.0 * i, "add", f"node-{i}") for i in range(240)]
    run = Simulation(changes, SMALL, max_ranks=240).run(1260.0)
    assert 240 == len(run.state.ranks)
    assert run.ledger.share(Use.READY) < 0.15
    assert run.stops["RESIZED"] > 30, "no newcomer waits longer than half a minute"


def test_copies_of_a_trace_have_as_many_nodes_at_any_time_as_it_has_on_average():
    trace = arrivals.bamboo("p3")
    changes = arrivals.side_by_side(trace, 40)
    assert len(set(changes)) == len(changes)
    there = 0
    for before, after in zip(changes, changes[1:], strict=False):
        there += 1 if before.kind == "add" else -1
        if after.at > before.at:
            assert 40 * 20 < there < 40 * 28


def test_young_dalys_efficiency_is_what_both_say_where_failures_are_rare():
    best = young_daly.efficiency(mtbf_s=3600.0, save_s=10.0, restart_s=60.0)
    assert 1 - best == pytest.approx(math.sqrt(2 * 10 / 3600) + 60 / 3600, rel=0.1)
    assert 1.0 == young_daly.efficiency(math.inf, save_s=10.0, restart_s=60.0)
    # nearly nothing gets done where failures come faster than a restart takes
    assert 0 < young_daly.efficiency(mtbf_s=10.0, save_s=10.0, restart_s=60.0) < 0.01
