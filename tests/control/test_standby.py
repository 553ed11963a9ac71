"""When the next generation's ranks are made ahead of it, and when they are of no use."""

import pytest
from test_loop import Cluster, only, ready, stand_by, told

from fairseq_ray_plugin.control import membership, standby
from fairseq_ray_plugin.control.state import Log
from fairseq_ray_plugin.faults import Error, Fault
from fairseq_ray_plugin.protocol import (
    Advanced,
    Ended,
    FromRank,
    Gone,
    Heard,
    Hold,
    Notice,
    Place,
    Raised,
    Save,
    StandBy,
    StandDown,
    StandingBy,
    Start,
    Tell,
    Unreached,
)
from fairseq_ray_plugin.report.journal import EventKind


@pytest.fixture
def cluster():
    """Two workers train, on a node each."""
    cluster = Cluster(stand_by_at_once=False)
    cluster.train({"a": 1, "b": 1})
    return cluster


def newcomers(cluster, *nodes):
    """They have settled; returns what follows."""
    placed = [a.worker for a in cluster.see(room=dict.fromkeys(nodes, 1)) if isinstance(a, Place)]
    cluster.see(*map(ready, placed))
    return cluster.see(after=membership.SETTLE_S)


def rest(cluster, update=10):
    """All ranks are at rest; returns what follows."""
    answers = [cluster.held(name, update) for name in cluster.state.ranks if name in there(cluster)]
    actions = cluster.see(*answers)
    saves = told(actions, Save)
    written = [cluster.saved(save.worker, update, f"of {save.worker}") for save in saves]
    return saves[0], cluster.see(*written)


def there(cluster):
    return cluster.state.workers


def test_training_goes_on_until_the_ranks_for_newcomers_stand_by(cluster):
    (asked,) = newcomers(cluster, "c")
    assert StandBy(2, ("worker-0", "worker-1", "worker-2"), is_planned=True) == asked
    first, *others = stand_by(asked)
    assert [] == cluster.see(first)
    assert [] == cluster.see(cluster.advanced("worker-0", 11), after=standby.PATIENCE_S / 2)
    holds = cluster.see(*others)
    assert [Tell(f"worker-{i}", Hold(1, at_once=False)) for i in (0, 1)] == holds
    _, (start,) = rest(cluster)
    assert (2, asked.ranks) == (start.generation, start.ranks)


def test_ranks_that_never_stand_by_hold_nothing_up(cluster):
    (asked,) = newcomers(cluster, "c")
    sign = cluster.advanced("worker-0", 11)
    assert [] == cluster.see(sign, after=standby.PATIENCE_S - 0.1)
    assert 2 == len(told(cluster.see(after=0.1), Hold))
    _, (start,) = rest(cluster)
    assert 2 == start.generation, "they may yet come: each is told what to go on from"
    assert asked.ranks == start.ranks


def failed(cluster, asked):
    error = Error("OSError", "no such file\nat all", "", Fault.OWN)
    return Heard("worker-2", FromRank(asked.generation, Raised(None, error)))


def ended(cluster, asked):
    return Heard("worker-1", FromRank(asked.generation, Ended("was killed")))


def unreached(cluster, asked):
    return Unreached("worker-2", asked, "unavailable")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (failed, "on node c: OSError: no such file"),
        (ended, "on node b: its process was killed"),
        (unreached, "which could not be told to be made: unavailable"),
    ],
)
def test_where_one_cannot_stand_by_the_generation_is_made_when_it_begins(event, reason, cluster):
    (asked,) = newcomers(cluster, "c")
    holds = cluster.see(event(cluster, asked))
    (said,) = [a.event for a in only(cluster.actions, Log) if a.event.kind is EventKind.STANDBY]
    assert said.cause == f"a rank made ahead of the next generation cannot be used, {reason}"
    assert 2 == len(told(holds, Hold)), "nobody waits for them"
    assert 10 == cluster.state.update and not cluster.state.failures, "it counts against nobody"
    _, actions = rest(cluster)
    assert {*asked.ranks} == {a.worker for a in told(actions, StandDown)}
    (start,) = only(actions, Start)
    assert 3 == start.generation, "the other number has been used"
    assert asked.ranks == start.ranks


def test_a_worker_that_dies_takes_those_with_it_that_stand_by(cluster):
    (asked,) = newcomers(cluster, "c")
    actions = cluster.see(Gone("worker-2", "killed"))
    assert {"worker-0", "worker-1"} == {a.worker for a in told(actions, StandDown)}
    assert not told(actions, Hold)
    (again,) = newcomers(cluster, "c")
    assert StandBy(3, ("worker-0", "worker-1", "worker-3"), is_planned=True) == again
    assert 2 == len(told(cluster.see(*stand_by(again)), Hold))
    assert [] == cluster.see(*stand_by(asked)), "what the first say is void"


def test_newcomers_that_come_while_ranks_are_made_wait_for_the_next_resize(cluster):
    (asked,) = newcomers(cluster, "c")
    assert [] == newcomers(cluster, "d")
    assert 2 == len(told(cluster.see(*stand_by(asked)), Hold))
    _, (start,) = rest(cluster)
    assert asked.ranks == start.ranks
    (asked,) = cluster.see(cluster.advanced("worker-0", 11))
    assert StandBy(3, tuple(f"worker-{i}" for i in range(4)), is_planned=True) == asked


def test_a_node_is_left_when_ranks_stand_by_on_those_that_stay(cluster):
    notice = Heard("worker-0", Notice("spot instance", 120.0))
    (asked,) = cluster.see(notice)
    assert StandBy(2, ("worker-1",), is_planned=True) == asked
    assert 2 == len(told(cluster.see(*stand_by(asked)), Hold))
    save, actions = rest(cluster)
    (start,) = only(actions, Start)
    assert "worker-1" == save.worker
    assert (2, ("worker-1",)) == (start.generation, start.ranks)


def test_a_node_with_little_time_is_left_without_waiting_for_long(cluster):
    (asked,) = cluster.see(Heard("worker-0", Notice("spot instance", 8.0)))
    assert isinstance(asked, StandBy)
    assert [] == cluster.see(after=8.0 * standby.SHARE_OF_NOTICE / 2)
    assert 2 == len(told(cluster.see(after=8.0 * standby.SHARE_OF_NOTICE), Hold))


@pytest.mark.parametrize(("room", "left_s"), [({"a": 1}, 120.0), ({"a": 1, "b": 1}, 0.0)])
def test_where_nobody_stays_or_time_is_past_nothing_is_made_ahead(room, left_s):
    cluster = Cluster(stand_by_at_once=False)
    cluster.train(room)
    actions = cluster.see(Heard("worker-0", Notice("spot instance", left_s)))
    assert {f"worker-{i}" for i in range(len(room))} == {a.worker for a in told(actions, Hold)}


def test_after_a_failure_ranks_are_made_while_the_state_is_written(cluster):
    cluster.see(cluster.ended("worker-1", "was killed"))
    (save,) = cluster.see(cluster.held("worker-0", 10))
    assert Tell("worker-0", Save(as_checkpoint=False)) == save
    assert [] == cluster.see(after=standby.SHORT_S / 2), "a small state is written sooner"
    (asked,) = cluster.see(after=2 * standby.SHORT_S)
    assert StandBy(2, ("worker-0", "worker-1")) == asked
    assert [] == cluster.see(after=2 * standby.SHORT_S), "once"
    (start,) = cluster.see(cluster.saved("worker-0", 10, "memory"))
    assert (2, asked.ranks) == (start.generation, start.ranks), "ready or not"


def test_they_serve_also_where_another_rank_fails_before_the_stop_they_were_made_for(cluster):
    (asked,) = newcomers(cluster, "c")
    cluster.see(*stand_by(asked))
    cluster.see(cluster.ended("worker-1", "was killed"))
    save, (start,) = rest_of(cluster, "worker-0")
    assert "worker-0" == save.worker
    assert (2, asked.ranks) == (start.generation, start.ranks)


def rest_of(cluster, name):
    actions = cluster.see(cluster.held(name, 10))
    (save,) = told(actions, Save)
    return save, cluster.see(cluster.saved(save.worker, 10, "memory"))


def test_they_do_not_serve_where_another_node_than_rank_0s_has_the_state(cluster):
    (asked,) = newcomers(cluster, "c")
    cluster.see(*stand_by(asked))
    actions = cluster.see(cluster.held("worker-0", 10), cluster.held("worker-1", 11))
    (save,) = told(actions, Save)
    assert "worker-1" == save.worker
    (again,) = only(cluster.see(after=2 * standby.SHORT_S), StandBy)
    assert "worker-1" == again.ranks[0]
    (start,) = only(cluster.see(cluster.saved("worker-1", 11, "memory")), Start)
    assert (again.generation, again.ranks) == (start.generation, start.ranks)


def test_a_generation_that_nobody_stood_by_for_has_a_number_of_its_own(cluster):
    (asked,) = newcomers(cluster, "c")
    cluster.see(Gone("worker-2", "killed"))
    cluster.see(cluster.ended("worker-1", "was killed"), cluster.held("worker-0", 10))
    (start,) = cluster.see(cluster.saved("worker-0", 10, "memory"))
    assert start.generation > asked.generation


def test_who_stands_by_is_not_heard_as_one_that_trains(cluster):
    (asked,) = newcomers(cluster, "c")
    says = (Advanced(99, 1.0), StandingBy())
    cluster.see(*(Heard("worker-2", FromRank(asked.generation, message)) for message in says))
    assert 10 == cluster.state.update
