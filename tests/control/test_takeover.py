"""A new loop knows again, from those who lived on, all that must not be lost."""

import pytest

from fairseq_ray_plugin.assignment import Found
from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.state import End, Gathering, Standing, Stopping
from fairseq_ray_plugin.control.takeover import take_over
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    Copy,
    FromRank,
    Heard,
    Held,
    Hold,
    InMemory,
    InSaveDir,
    Observation,
    Place,
    Ready,
    Save,
    Saved,
    Start,
    Tell,
)


def found(number=0, **changes):
    fields = {
        "node": f"node-{number}",
        "is_ready": True,
        "num_heard": 9,
        "newest": 3,
        "generation": 3,
        "rank": number,
        "world_size": 2,
        "is_at_rest": False,
        "update": 40,
        "pid": 7,
        "snapshots": (),
    }
    return Found(**{**fields, **changes})


def line(kind, **fields):
    return {"kind": kind, "generation": 3, "update": 40, **fields}


def holds(actions):
    return {action.worker: action.order for action in actions if isinstance(action, Tell)}


def test_ranks_that_train_come_to_rest_by_a_planned_stop_and_the_next_generation_goes_on():
    state, actions = take_over({"worker-1": found(1), "worker-4": found(0)}, [line("started")], 5.0)
    assert ("worker-4", "worker-1") == state.ranks and 40 == state.update
    assert {name: Hold(4, at_once=False) for name in state.ranks} == holds(actions)
    config = ElasticConfig()
    says = FromRank(3, Held(41, 4))
    events = tuple(Heard(name, says) for name in state.ranks)
    state, actions = loop.step(state, Observation(now=6.0, events=events), config)
    assert holds(actions) == dict.fromkeys(("worker-4", "worker-1"), Save(as_checkpoint=False))
    saved = tuple(Heard(name, FromRank(3, Saved(41, "file"))) for name in holds(actions))
    state, actions = loop.step(state, Observation(now=6.1, events=saved), config)
    (start,) = [action for action in actions if isinstance(action, Start)]
    assert (5, Copy(41, InMemory("node-0", "file"))) == (start.generation, start.source)


@pytest.mark.parametrize(
    "other",
    [
        None,  # its worker has died
        {"generation": 2, "newest": 2},  # it was not told to start any more
        {"is_at_rest": True},
        {"generation": 0, "rank": -1, "world_size": 0},  # a newcomer, without a rank
    ],
)
def test_where_not_all_ranks_can_end_their_update_they_stop_at_once(other):
    there = {"worker-0": found(0)}
    if other is not None:
        there["worker-1"] = found(1, **other)
    state, actions = take_over(there, [], 5.0)
    assert dict.fromkeys(there, Hold(4, at_once=True)) == holds(actions)
    assert isinstance(state.phase, Stopping)


def test_a_worker_that_imports_is_waited_for_and_the_next_one_has_a_new_name():
    state, actions = take_over({"worker-7": found(generation=0, newest=0, is_ready=False)}, [], 5.0)
    assert Standing.STARTING is state.workers["worker-7"].standing
    assert (8, (), Gathering(5.0)) == (state.num_placed, state.ranks, state.phase)
    assert {} == holds(actions)


def test_no_generation_has_a_number_that_anybody_was_told_before():
    state, _ = take_over({"worker-0": found(newest=6)}, [line("started", generation=5)], 5.0)
    assert 7 == state.generation
    state, _ = take_over({}, [line("started", generation=5)], 5.0)
    assert 6 == state.generation


def test_what_is_in_memory_and_on_disk_is_known_again_and_older_files_go():
    old, new = (Copy(u, InMemory("node-0", f"update_{u}.pt")) for u in (10, 30))
    lines = [
        line("checkpoint", path="checkpoint_1.pt", update=18),
        line("checkpoint", path="checkpoint_2.pt", update=35),
        line("stopped"),
    ]
    state, _ = take_over({"worker-0": found(snapshots=(new, old))}, lines, 5.0)
    assert {"node-0": new} == state.snapshots and (old,) == state.superseded
    assert Copy(35, InSaveDir("checkpoint_2.pt")) == state.checkpoint


def test_which_gpu_a_worker_has_is_known_again():
    there = {"worker-0": found(0, gpu="GPU-1b3c"), "worker-1": found(1)}
    state, _ = take_over(there, [line("started")], 5.0)
    assert ["GPU-1b3c", ""] == [worker.gpu for worker in state.workers.values()]


def test_a_run_that_is_over_stays_over():
    there = {"worker-0": found(0)}
    lines = [line("started"), line("interrupted", exit_code=143, cause="interrupted by SIGTERM")]
    _, actions = take_over(there, lines, 5.0)
    assert [End(143, "interrupted by SIGTERM")] == actions


def test_with_nobody_left_the_run_goes_on_from_its_own_checkpoint():
    lines = [line("checkpoint", path="checkpoint_2.pt", update=35)]
    state, _ = take_over({}, lines, 5.0)
    config = ElasticConfig()
    state, _ = loop.step(state, Observation(now=6.0, room={"node-0": 1}), config)
    (worker,) = state.workers
    observation = Observation(now=21.0, events=(Heard(worker, Ready()),))
    state, actions = loop.step(state, observation, config)
    (start,) = [action for action in actions if isinstance(action, Start)]
    assert Copy(35, InSaveDir("checkpoint_2.pt")) == start.source


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_snapshots_of_an_update_the_one_counts_that_the_other_loop_kept(order):
    """The loop that died may have told the worker to drop the other."""
    other, kept = (Copy(40, InMemory("node-0", f"file-{number}")) for number in (0, 1))
    there = (other, kept)[::order]
    state, _ = take_over({"worker-0": found(snapshots=there)}, [line("started")], 5.0)
    assert {"node-0": kept} == state.snapshots and (other,) == state.superseded


def test_workers_that_were_placed_before_there_was_a_loop_are_no_takeover():
    """They have waited already, and are waited for no longer than if it had placed them."""
    fresh = {"is_ready": False, "num_heard": 0, "newest": 0, "generation": 0, "rank": -1}
    fresh |= {"world_size": 0, "is_at_rest": True, "update": 0, "pid": 0}
    ahead = {f"worker-{n}": found(n, **fresh, age_s=2.0 - n) for n in range(2)}
    state, actions = take_over(ahead, [], 10.0)
    assert [] == actions and 0 == state.generation
    assert Gathering(8.0) == state.phase and [8.0, 9.0] == [w.since for w in state.workers.values()]
    ready = tuple(Heard(name, Ready()) for name in ahead)
    state, actions = loop.step(state, Observation(now=10.1, events=ready), ElasticConfig())
    (start,) = [action for action in actions if isinstance(action, Start)]
    assert (1, tuple(ahead), None) == (start.generation, start.ranks, start.source)
    seen = Observation(now=11.0, room={"node-2": 1})
    assert [Place("worker-2", "node-2")] == loop.step(state, seen, ElasticConfig())[1]
