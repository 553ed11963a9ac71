"""Which nodes are heard of, and when a node that was silent is."""

import pytest

from fairseq_ray_plugin.control.state import UNHEARD_S
from fairseq_ray_plugin.heartbeats import LATE_S, Heartbeats


@pytest.fixture
def asked():
    return []


@pytest.fixture
def beats(asked):
    return Heartbeats(asked.append)


def test_one_worker_of_each_node_is_asked_again_and_again(beats, asked):
    beats.begin("worker-0", "a", 10.0)
    beats.begin("worker-1", "a", 10.0)
    beats.begin("worker-2", "b", 10.0)
    assert ["worker-0", "worker-2"] == asked and {} == beats.heard
    beats.answered("worker-0", "a", 10.5)
    assert {"a": 10.5} == beats.heard and "worker-0" == asked[-1]
    beats.answered("worker-0", "a", 11.0)
    assert {"a": 11.0} == beats.heard and 4 == len(asked)


def test_what_was_asked_before_a_silence_does_not_end_it(beats, asked):
    """The network brings late what was sent before it was cut; the way there is not open yet."""
    beats.begin("worker-0", "a", 10.0)
    beats.answered("worker-0", "a", 10.5)
    beats.answered("worker-0", "a", 10.5 + LATE_S + 0.1)
    assert {"a": 10.5} == beats.heard and 3 == len(asked)
    beats.answered("worker-0", "a", 14.2)
    assert {"a": 14.2} == beats.heard


def test_no_node_is_taken_for_silent_that_is_as_slow_as_is_allowed(beats):
    assert LATE_S == UNHEARD_S
    beats.begin("worker-0", "a", 10.0)
    beats.answered("worker-0", "a", 10.0 + LATE_S)
    assert {"a": 10.0 + LATE_S} == beats.heard


def test_another_worker_speaks_for_a_node_whose_speaker_is_gone(beats, asked):
    beats.begin("worker-0", "a", 10.0)
    beats.answered("worker-0", "a", 10.5)
    beats.drop("worker-5", "a", ["worker-0"], (), 11.0)  # it was not the one
    assert ["worker-0"] * 2 == asked
    beats.drop("worker-0", "a", ["worker-1", "worker-2"], {"worker-1"}, 11.0)
    assert "worker-2" == asked[-1] and {"a": 10.5} == beats.heard


@pytest.mark.parametrize("others", [[], ["worker-1"]])
def test_nothing_is_known_of_a_node_where_nobody_can_answer_yet(beats, asked, others):
    beats.begin("worker-0", "a", 10.0)
    beats.answered("worker-0", "a", 10.5)
    beats.drop("worker-0", "a", others, {"worker-1"}, 11.0)
    assert {} == beats.heard and others == asked[2:]
    beats.begin("worker-9", "a", 12.0)
    assert ("worker-9" == asked[-1]) == (others == [])
