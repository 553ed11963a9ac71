"""One broken GPU is left out, and not its node; nor does it end the run."""

import re

import pytest
from test_loop import Cluster, fail, only, told

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import membership, nodes, stopping
from fairseq_ray_plugin.control.state import Gathering, Training
from fairseq_ray_plugin.faults import Fault
from fairseq_ray_plugin.protocol import (
    Blocked,
    Ended,
    Heard,
    InMemory,
    Publish,
    Ready,
    Running,
    Save,
)

ECC = "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"


def train(room, gpus, **options):
    """A cluster on which each worker has the GPU that stands at its number, and trains."""
    cluster = Cluster(**options)
    placed = [a.worker for a in cluster.see(room=room) if isinstance(a, protocol.Place)]
    (start,) = cluster.see(
        *(Heard(name, Ready(gpu)) for name, gpu in zip(placed, gpus, strict=True))
    )
    begin(cluster, start, 10)
    return cluster


def begin(cluster, start, update):
    cluster.see(*(cluster.says(rank, Running(1)) for rank in start.ranks))
    cluster.see(*(cluster.advanced(rank, update) for rank in start.ranks))


def raise_on(cluster, worker, update, text=ECC, fault=Fault.GPU_HARDWARE):
    """A rank raises, the others hold, what they hold is saved; what the loop does then."""
    others = [name for name in cluster.state.ranks if name != worker]
    cluster.see(cluster.raised(worker, update, text, fault))
    cluster.see(after=stopping.ECHO_S)
    actions = cluster.see(*(cluster.held(name, update) for name in others))
    if cluster.state.ending is None and (saves := told(actions, Save)):
        actions = cluster.see(*(cluster.saved(save.worker, update, "memory") for save in saves))
    return actions


def left_out(cluster):
    return [e for e in cluster.events if e.kind.value == "left out"]


@pytest.mark.parametrize("advances", [True, False])
def test_a_gpu_that_fails_twice_is_left_out_and_the_others_of_its_node_go_on(advances):
    cluster = train({"a": 2, "b": 1}, ["G0", "G1", "G2"])
    (start,) = raise_on(cluster, "worker-1", 10)
    assert 3 == len(start.ranks), "once is no reason"
    if advances:
        begin(cluster, start, 500)  # long enough for it not to be the same failure
    (start,) = raise_on(cluster, "worker-1", 500 if advances else 10)
    assert {"worker-0", "worker-2"} == set(start.ranks)
    (event,) = left_out(cluster)
    assert event.cause == "GPU G1 of node a for 60 s: training fails there again and again"
    assert ("G1", "a") == (event.details["gpu"], event.details["node"])
    begin(cluster, start, 510)
    assert [] == cluster.see(room={}), "its worker keeps it, that Ray may give it to nobody"
    (hold,) = told(cluster.see(after=nodes.FIRST_COOL_DOWN_S), protocol.Hold)[:1]
    assert not hold.order.at_once, "it is tried again, and taken in"


def test_one_broken_gpu_ends_no_run_that_can_do_without():
    """However small the number of failures allowed, and where there is one node."""
    cluster = train({"a": 2}, ["G0", "G1"], max_failures=2)
    raise_on(cluster, "worker-1", 10)
    (start,) = raise_on(cluster, "worker-1", 10)
    assert ("worker-0",) == start.ranks and cluster.state.ending is None


@pytest.mark.parametrize("text", ["ValueError: bad sample", ECC])
def test_where_another_gpu_raises_the_same_it_is_the_trainings_fault(text):
    cluster = train({"a": 3}, ["G0", "G1", "G2"])
    fault = Fault.GPU_HARDWARE if text == ECC else Fault.OWN
    raise_on(cluster, "worker-1", 10, text, fault)
    (start,) = raise_on(cluster, "worker-1", 10, text, fault)
    end = cluster.end(raise_on(cluster, start.ranks[0], 10, text, fault))
    assert 1 == end.exit_code and "training failed 3 times" in end.message


def test_where_all_ranks_raise_it_no_gpu_is_left_out():
    cluster = train({"a": 2}, ["G0", "G1"])
    for _ in range(2):
        raised = [cluster.raised(f"worker-{n}", 10, "ValueError: bad") for n in (0, 1)]
        actions = cluster.see(*raised)
        for save in told(actions, Save):
            cluster.see(cluster.saved(save.worker, 10, "memory"))
    assert cluster.state.ending is not None and not left_out(cluster)


def test_without_another_gpu_the_run_ends_with_what_it_says():
    cluster = train({"a": 1}, ["G0"])
    cluster.see(cluster.raised("worker-0", 10, ECC, Fault.GPU_HARDWARE))
    cluster.see(cluster.saved("worker-0", 10, "memory"))
    end = cluster.end(cluster.see(cluster.raised("worker-0", 10, ECC, Fault.GPU_HARDWARE)))
    assert "uncorrectable ECC error" in end.message and "has to be reset" in end.message


@pytest.mark.parametrize("crashed", [True, False])
def test_a_process_that_crashes_counts_for_its_gpu_and_one_that_is_killed_does_not(crashed):
    cluster = train({"a": 1, "b": 1}, ["G0", "G1"])
    for update in (10, 500):
        ended = cluster.says("worker-1", Ended("was killed by SIGABRT", crashed))
        actions = fail(cluster, "worker-1", ended, update)
        (start,) = only(actions, protocol.Start)
        begin(cluster, start, 500)
    assert crashed == bool(left_out(cluster))


def test_a_node_on_which_several_gpus_fail_is_left_out_itself():
    cluster = train({"a": 3, "b": 1}, ["G0", "G1", "G2", "G3"])
    for number, update in enumerate((10, 500, 1000)):
        text = f"ValueError: {'abc'[number]}"
        (start,) = raise_on(cluster, f"worker-{number}", update, text, Fault.OWN)
        begin(cluster, start, update + 490)
    (event,) = left_out(cluster)
    assert event.cause.startswith("node a for 60 s")


def test_what_is_known_on_one_node_alone_is_published_where_its_gpus_are_left_out():
    """Or the next generation's rank 0, on another node, would look for it in vain."""
    cluster = train({"a": 1, "b": 1}, ["G0", "G1"])
    raise_on(cluster, "worker-1", 10)
    cluster.see(cluster.raised("worker-1", 11, ECC, Fault.GPU_HARDWARE))
    cluster.see(after=stopping.ECHO_S)
    (save,) = told(cluster.see(cluster.held("worker-0", 10)), Save)
    assert "worker-1" == save.worker and save.order.as_checkpoint
    (start,) = only(
        cluster.see(cluster.saved("worker-1", 11, "checkpoint_last.pt")), protocol.Start
    )
    assert ("worker-0",) == start.ranks and 11 == start.source.update


def test_a_snapshot_on_a_node_whose_gpus_are_left_out_is_published():
    cluster = train({"a": 1, "b": 1}, ["G0", "G1"])
    cluster.see(cluster.snapshot("worker-1", 12, "kept"))
    for worker in ("worker-1", "worker-0"):  # nobody holds anything
        cluster.see(cluster.ended(worker, "was killed"))
    start = only(cluster.actions, protocol.Start)[-1]
    assert InMemory("b", "kept") == start.source.place
    cluster.see(cluster.says("worker-1", Blocked("process 7 outlives SIGKILL")))
    actions = cluster.see(cluster.held("worker-0", None))
    (publish,) = told(actions, Publish)
    assert "worker-1" == publish.worker


def test_another_worker_is_placed_for_one_whose_gpu_is_left_out():
    cluster = train({"a": 1, "b": 1}, ["G0", "G1"], max_ranks=2)
    raise_on(cluster, "worker-1", 10)
    (start,) = raise_on(cluster, "worker-1", 10)
    begin(cluster, start, 20)
    (place,) = cluster.see(room={"c": 1})
    (start, *_) = [place]
    assert "c" == start.node
    cluster.see(Heard(place.worker, Ready("G2")), after=1)
    cluster.see(after=membership.SETTLE_S)
    cluster.see(cluster.held("worker-0", 21))
    (start,) = cluster.see(cluster.saved("worker-0", 21, "memory"))
    assert {"worker-0", place.worker} == set(start.ranks)
    begin(cluster, start, 30)
    actions = cluster.see(after=nodes.FIRST_COOL_DOWN_S)
    assert [protocol.Remove("worker-1")] == only(actions, protocol.Remove), "one too many"


def test_a_gpu_that_is_left_out_is_not_used_by_its_next_worker_either():
    cluster = train({"a": 1, "b": 1}, ["G0", "G1"])
    raise_on(cluster, "worker-1", 10)
    (start,) = raise_on(cluster, "worker-1", 10)
    begin(cluster, start, 20)
    cluster.see(protocol.Gone("worker-1", "killed"))
    (place,) = cluster.see(room={"b": 1})
    cluster.see(Heard(place.worker, Ready("G1")), after=1)
    assert [] == cluster.see(after=membership.SETTLE_S)
    assert isinstance(cluster.state.phase, Training)


@pytest.mark.parametrize(("gpu", "what"), [("G1", "GPU G1 of node b"), ("", "node b")])
def test_where_a_rank_cannot_begin_for_what_is_left_of_the_last_others_go_on(gpu, what):
    cluster = train({"a": 1, "b": 1}, ["G0", gpu])
    fail(cluster, "worker-1", cluster.ended("worker-1", "was killed"), 10)
    reason = "process 7 (python) outlives SIGKILL: it waits in the kernel's nfs_wait"
    cluster.see(cluster.says("worker-1", Blocked(reason)))
    actions = cluster.see(cluster.held("worker-0", 10))
    for save in told(actions, Save):
        actions = cluster.see(cluster.saved(save.worker, 10, "memory"))
    (start,) = only(actions, protocol.Start)
    assert ("worker-0",) == start.ranks
    (event,) = left_out(cluster)
    assert event.cause == f"{what} for 60 s: {reason}"


def test_a_lone_node_that_is_blocked_is_waited_for_and_is_no_failure():
    cluster = train({"a": 1}, [""], max_failures=1)
    for _ in range(3):
        cluster.see(cluster.says("worker-0", Blocked("process 7 outlives SIGKILL")))
        assert isinstance(cluster.state.phase, Gathering) and cluster.state.ending is None
        cluster.see(after=nodes.HOUR_S)
        assert isinstance(cluster.state.phase, Training)


def one_left_out(**options):
    """A cluster of three GPUs on two nodes, one of which is left out; the others train."""
    cluster = train({"a": 1, "b": 2}, ["G0", "G1", "G2"], **options)
    raise_on(cluster, "worker-1", 10)
    (start,) = raise_on(cluster, "worker-1", 10)
    assert 1 == len(left_out(cluster))
    return cluster, start


def test_the_failures_of_a_gpu_that_is_left_out_are_not_held_against_its_node():
    cluster, start = one_left_out()
    begin(cluster, start, 200)
    fail(cluster, "worker-2", cluster.ended("worker-2", "was killed"), 200)
    assert 1 == len(left_out(cluster))


def test_a_lost_process_after_that_is_a_failure_like_any_other():
    cluster, _ = one_left_out()
    (start,) = only(
        fail(cluster, "worker-2", cluster.ended("worker-2", "was killed"), 10), protocol.Start
    )
    assert {"worker-0", "worker-2"} == set(start.ranks) and cluster.state.ending is None


def test_a_gpu_that_was_left_out_and_cannot_begin_is_left_out_once_more_and_once_only():
    cluster, start = one_left_out()
    begin(cluster, start, 20)
    cluster.see(after=nodes.FIRST_COOL_DOWN_S)
    saves = told(cluster.see(*(cluster.held(name, 21) for name in start.ranks)), Save)
    cluster.see(*(cluster.saved(save.worker, 21, "m") for save in saves))
    assert "worker-1" in cluster.state.ranks
    cluster.see(cluster.says("worker-1", Blocked("process 7 outlives SIGKILL")))
    cluster.see(*(cluster.held(name, None) for name in start.ranks))
    pauses = [re.search(r"for \d+ s", event.cause)[0] for event in left_out(cluster)]
    assert ["for 60 s", "for 120 s"] == pauses
