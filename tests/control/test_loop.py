"""The control loop against a cluster that is a script: no clock, no Ray, milliseconds."""

import dataclasses
import statistics
import time

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import failures, loop, membership, nodes, stopping
from fairseq_ray_plugin.control.state import UNHEARD_S, Phase, State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Gone, Notice, Ready, Report


class Cluster:
    """Feeds observations to the loop and remembers what it asked for."""

    def __init__(self, *, max_ranks=None, **options):
        self.config = ElasticConfig(**options)
        self.max_ranks = max_ranks
        self.state = State()
        self.now = 100.0
        self.actions = []

    def see(self, *events, after=0.0, **observed):
        """One step; returns the actions other than log lines."""
        self.now += after
        observation = protocol.Observation(now=self.now, events=events, **observed)
        self.state, actions = loop.step(self.state, observation, self.config, self.max_ranks)
        self.actions += actions
        return [action for action in actions if not isinstance(action, protocol.Log)]

    def report(self, worker, kind, update=None, text="", **fields):
        return Report(worker, self.state.generation, kind, update, text, **fields)

    def train(self, room, update=10):
        """A generation on all of `room` has done some updates."""
        placed = [a.worker for a in self.see(room=room) if isinstance(a, protocol.Place)]
        (start,) = self.see(*map(Ready, placed))
        self.see(*(self.report(rank, "running", pid=1) for rank in start.ranks))
        self.see(*(self.report(rank, "advanced", update) for rank in start.ranks))
        return start

    @property
    def kinds(self):
        return [a.event.kind for a in self.actions if isinstance(a, protocol.Log)]


def only(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def test_a_generation_starts_when_all_that_was_placed_is_ready():
    cluster = Cluster()
    first, second = cluster.see(room={"a": 1, "b": 1})
    assert [] == cluster.see(Ready(first.worker))
    (start,) = cluster.see(Ready(second.worker))
    assert ("worker-0", "worker-1") == start.ranks
    assert start.source is None
    assert {"worker-0", "worker-1"} == start.keepers, "a snapshot on each of two nodes"


def test_a_slow_starter_is_not_waited_for_without_end():
    cluster = Cluster()
    first, _ = cluster.see(room={"a": 2})
    cluster.see(Ready(first.worker))
    (start,) = cluster.see(after=membership.START_PATIENCE_S + 1)
    assert ("worker-0",) == start.ranks


def test_too_few_workers_are_waited_for_and_said_once():
    cluster = Cluster(min_workers=2)
    (placed,) = cluster.see(room={"a": 1})
    for _ in range(3):
        cluster.see(Ready(placed.worker), after=60)
    assert Phase.GATHERING is cluster.state.phase
    assert ["waiting", "waiting"] == cluster.kinds  # starting, then ready
    (more,) = cluster.see(room={"b": 1})
    (start,) = cluster.see(Ready(more.worker), after=60)
    assert 2 == len(start.ranks)


def test_a_dead_process_stops_the_others_at_once_and_the_freshest_state_goes_on():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1, "c": 1})
    holds = cluster.see(cluster.report("worker-1", "ended", text="was killed"))
    assert [("worker-0", True), ("worker-2", True)] == [(h.worker, h.at_once) for h in holds]
    assert [] == cluster.see(cluster.report("worker-0", "held", 10))
    (save,) = cluster.see(cluster.report("worker-2", "held", 11))
    assert protocol.Save("worker-2", 1, as_checkpoint=False) == save
    (start,) = cluster.see(cluster.report("worker-2", "saved", 11, "memory"))
    assert protocol.Source("memory", 11, "c") == start.source
    assert "worker-2" == start.ranks[0], "rank 0 is where the state is"
    assert 3 == len(start.ranks), "the slot of the dead process is used again"


def test_a_dead_worker_is_left_out_and_its_room_filled_again():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(Gone("worker-1", "killed"))
    cluster.see(cluster.report("worker-0", "held", 10))
    (start,) = cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    assert ("worker-0",) == start.ranks
    cluster.see(cluster.report("worker-0", "advanced", 11))
    (place,) = cluster.see(room={"b": 1})
    cluster.see(Ready(place.worker))
    (hold,) = cluster.see(after=membership.SETTLE_S)
    assert not hold.at_once, "a planned stop lets the update end"


def test_a_silent_rank_is_left_out_and_taken_back_when_it_answers():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-0", "raised", 10, "reset", by_peer=True))
    assert [] == cluster.see(after=stopping.SILENCE_S + 0.1, heard={"worker-1": cluster.now + 1})
    (save,) = cluster.see(heard={"worker-1": cluster.now - stopping.SILENCE_S - 0.1})
    assert "worker-0" == save.worker
    (start,) = cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    assert ("worker-0",) == start.ranks
    cluster.see(cluster.report("worker-0", "advanced", 11))
    cluster.see(Report("worker-1", 1, "held", 10))
    (hold,) = cluster.see(after=membership.SETTLE_S)
    assert "worker-0" == hold.worker


def test_when_one_rank_rests_the_others_are_stopped_where_they_wait_for_it():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    (place,) = cluster.see(room={"c": 1})
    cluster.see(Ready(place.worker))
    holds = cluster.see(after=membership.SETTLE_S)
    assert [False, False] == [hold.at_once for hold in holds]
    (hold,) = cluster.see(cluster.report("worker-0", "held", 10))
    assert ("worker-1", True) == (hold.worker, hold.at_once)


def test_several_newcomers_make_one_resize():
    cluster = Cluster()
    cluster.train({"a": 1})
    first, second = cluster.see(room={"b": 2})
    assert [] == cluster.see(Ready(first.worker), after=5)
    assert [] == cluster.see(Ready(second.worker), after=1)
    assert 1 == len(cluster.see(after=membership.SETTLE_S))


def test_no_more_ranks_than_have_something_to_do():
    cluster = Cluster(max_ranks=2)
    assert 2 == len(cluster.see(room={"a": 3}))
    assert [] == cluster.see(room={"a": 1}, after=1)
    assert ["spare"] == [kind for kind in cluster.kinds if kind != "waiting"], "said once"
    asked_for = Cluster(max_ranks=2, max_workers=2)
    asked_for.see(room={"a": 3})
    assert "spare" not in asked_for.kinds


def test_for_a_worker_that_does_not_speak_another_is_placed_and_the_one_too_many_removed():
    cluster = Cluster(max_ranks=2)
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-0", "raised", 10, "reset", by_peer=True))
    cluster.see(after=stopping.SILENCE_S + 0.1, heard={"worker-1": cluster.now})
    cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    (place,) = cluster.see(cluster.report("worker-0", "advanced", 11), room={"c": 1})
    assert ("worker-2", "c") == (place.worker, place.node)
    assert [] == cluster.see(room={"d": 1}), "one is on its way"
    # nor does that one speak any more, while it starts
    heard = {"worker-2": cluster.now}
    (place,) = cluster.see(room={"d": 1}, after=UNHEARD_S + 0.1, heard=heard)
    assert ("worker-3", "d") == (place.worker, place.node)
    assert [] == cluster.see(Ready("worker-3"), room={"e": 1}, heard=heard)
    (remove,) = cluster.see(Report("worker-1", 1, "held", 10), heard=heard)
    assert protocol.Remove("worker-1") == remove
    (hold,) = cluster.see(after=membership.START_PATIENCE_S, heard=heard)
    assert "worker-0" == hold.worker, "worker-3 is taken in"


def test_the_cause_is_what_failed_first_not_its_echo_in_the_peers():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-0", "raised", 10, "connection reset", by_peer=True))
    cluster.see(cluster.report("worker-1", "ended", text="was killed by SIGKILL"))
    stopped = next(a.event for a in cluster.actions[::-1] if isinstance(a, protocol.Log))
    assert "stopped" == stopped.kind
    assert "rank 1 (on node b) was killed by SIGKILL" in stopped.cause


def fail(cluster, rank, kind, update, text):
    """A rank fails, the other holds, and the next generation runs."""
    cluster.see(cluster.report(rank, kind, update, text))
    cluster.see(after=stopping.ECHO_S)
    other = next(name for name in cluster.state.ranks if name != rank)
    actions = cluster.see(cluster.report(other, "held", update))
    for save in only(actions, protocol.Save):
        actions = cluster.see(cluster.report(save.worker, "saved", update, "memory"))
    return actions


def test_the_users_own_error_ends_the_run_when_it_comes_back_elsewhere_with_its_traceback():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    (start,) = fail(cluster, "worker-1", "raised", 10, "ValueError: bad sample")
    assert 2 == len(start.ranks)
    (start,) = fail(cluster, "worker-1", "raised", 10, "ValueError: bad sample")
    assert ("worker-0",) == start.ranks, "it may be the node's fault"
    assert "left out" in cluster.kinds
    (end,) = cluster.see(cluster.report("worker-0", "raised", 10, "ValueError: bad sample"))
    assert 1 == end.exit_code
    assert "3 times, after update 10" in end.message
    assert "ValueError: bad sample" in end.message


def test_the_users_own_error_ends_the_run_at_its_second_coming_where_all_ranks_raise_it():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    for _ in range(2):
        cluster.see(cluster.report("worker-0", "raised", 10, "FloatingPointError"))
        actions = cluster.see(cluster.report("worker-1", "raised", 10, "FloatingPointError"))
        if only(actions, protocol.Save):
            cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    assert "2 times, after update 10" in actions[-1].message


def test_the_users_own_error_ends_the_run_at_its_second_coming_where_there_is_one_node():
    cluster = Cluster()
    cluster.train({"a": 1})
    save, *_ = cluster.see(cluster.report("worker-0", "raised", 10, "ValueError: bad sample"))
    cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    (end,) = cluster.see(cluster.report("worker-0", "raised", 10, "ValueError: bad sample"))
    assert "2 times, after update 10" in end.message


TRACEBACK = """Traceback (most recent call last):
  File "loss.py", line 7, in forward
    raise ValueError(
        "bad sample"
ValueError: sample {} is bad,
  its loss is {}
"""


def raised_after(updates, texts, **options):
    """The actions, last those after the last of a rank's exceptions, with updates in between."""
    cluster = Cluster(**options)
    cluster.train({"a": 1}, update=1)
    for update, text in zip(updates, texts, strict=True):
        cluster.see(cluster.report("worker-0", "advanced", update))
        actions = cluster.see(cluster.report("worker-0", "raised", update, text))
        if only(actions, protocol.Save):
            cluster.see(cluster.report("worker-0", "saved", update, "memory"))
    return cluster, actions


def test_an_exception_that_comes_back_within_100_updates_is_the_same_failure_whatever_its_numbers():
    texts = [TRACEBACK.format(31, "1e-3"), TRACEBACK.format(7, "0x7f3c")]
    _, (end,) = raised_after((10, 110), texts)
    assert 1 == end.exit_code
    assert "2 times, after update 10 and 110; the first time, rank 0" in end.message
    assert "sample 31 is bad" in end.message
    cluster, actions = raised_after((10, 111), texts)
    assert only(actions, protocol.Save) and Phase.TRAINING is cluster.state.phase


def test_another_exception_after_progress_is_another_failure():
    other = TRACEBACK.replace("bad", "worse")
    for texts in ((TRACEBACK, other), (TRACEBACK, TRACEBACK.replace("ValueError:", "KeyError:"))):
        cluster, _ = raised_after((10, 20), texts)
        assert Phase.TRAINING is cluster.state.phase
    _, (end,) = raised_after((10, 20, 30), (TRACEBACK, other, TRACEBACK))
    assert "2 times, after update 10 and 30" in end.message
    _, (end,) = raised_after((10, 10), (TRACEBACK, other))
    assert "2 times, after update 10;" in end.message, "without progress any other is, too"


def test_the_loss_of_a_peer_is_no_exception_that_comes_back():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    for update in (20, 30, 40):
        for worker in ("worker-0", "worker-1"):
            cluster.see(cluster.report(worker, "advanced", update))
            peer = cluster.report(worker, "raised", update, "connection reset", by_peer=True)
            actions = cluster.see(peer)
        assert not only(actions, protocol.End)
        for save in only(actions, protocol.Save):
            cluster.see(cluster.report(save.worker, "saved", update, "memory"))


def test_a_headline_says_who_raised_what():
    text = f"FAILED: rank 1 raised:\n{TRACEBACK}"
    assert "FAILED: rank 1 raised: ValueError: sample {} is bad," == failures.headline(text)
    assert "LOST: rank 1 was killed" == failures.headline("LOST: rank 1 was killed\nby hand")
    assert "RESIZED" == failures.headline("RESIZED")
    assert "ValueError: x" == failures.exception("rank 1 raised:\nValueError: x")


def test_what_a_rank_refuses_ends_the_run_at_once():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    (end,) = cluster.see(cluster.report("worker-1", "refused", None, "it has another order"))
    assert (1, "it has another order") == (end.exit_code, end.message)


def test_failures_without_progress_end_the_run_with_the_first_of_them():
    cluster = Cluster(max_failures=3)
    cluster.train({"a": 1, "b": 1})
    fail(cluster, "worker-1", "ended", 10, "was killed first")
    fail(cluster, "worker-0", "ended", 10, "was killed second")
    (end,) = fail(cluster, "worker-1", "ended", 10, "was killed third")
    assert 1 == end.exit_code
    assert "was killed first" in end.message and "--ray-max-failures 3" in end.message


def test_failures_with_progress_in_between_do_not_add_up():
    cluster = Cluster(max_failures=2)
    cluster.train({"a": 1, "b": 1})
    for update in range(10, 20):
        (start,) = fail(cluster, "worker-1", "ended", update, "was killed")
        assert isinstance(start, protocol.Start)
        cluster.see(cluster.report("worker-0", "advanced", update + 1))
    for update in range(21, 30):  # nothing is told within a second; what survivors hold tells it
        (start,) = fail(cluster, "worker-1", "ended", update, "was killed")
        assert isinstance(start, protocol.Start)


def test_an_update_done_again_is_no_progress():
    cluster = Cluster(max_failures=2)
    cluster.train({"a": 1}, update=55)
    cluster.see(cluster.report("worker-0", "checkpoint", 50, "checkpoint_last.pt"))
    (start,) = cluster.see(cluster.report("worker-0", "ended", text="segmentation fault"))
    assert "checkpoint_last.pt" == start.source.path
    cluster.see(cluster.report("worker-0", "advanced", 51))
    cluster.see(cluster.report("worker-0", "advanced", 55))
    (end,) = cluster.see(cluster.report("worker-0", "ended", text="segmentation fault"))
    assert 1 == end.exit_code


def test_a_state_that_cannot_be_saved_gives_way_to_the_next():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1, "c": 1})
    cluster.see(cluster.report("worker-0", "ended", text="was killed"))
    cluster.see(cluster.report("worker-1", "held", 11))
    (save,) = cluster.see(cluster.report("worker-2", "held", 10))
    assert "worker-1" == save.worker
    (save,) = cluster.see(cluster.report("worker-1", "unsaved", text="disk full"))
    assert "worker-2" == save.worker
    (start,) = cluster.see(Gone("worker-2", "node lost"))
    assert start.source is None


def test_a_signal_saves_a_checkpoint_and_ends_with_the_shells_code():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    holds = cluster.see(signal=15)
    assert [False, False] == [hold.at_once for hold in holds]
    cluster.see(cluster.report("worker-0", "held", 10))
    (save,) = cluster.see(cluster.report("worker-1", "held", 10))
    assert protocol.Save("worker-0", 1, as_checkpoint=True) == save
    (end,) = cluster.see(cluster.report("worker-0", "saved", 10, "checkpoint_last.pt"))
    assert 128 + 15 == end.exit_code
    assert "interrupted" == cluster.kinds[-1]


def test_a_signal_while_a_failure_is_dealt_with_still_saves_a_checkpoint():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-1", "ended", text="was killed"))
    (save,) = cluster.see(cluster.report("worker-0", "held", 10))
    assert not save.as_checkpoint
    (save,) = cluster.see(cluster.report("worker-0", "saved", 10, "memory"), signal=2)
    assert save.as_checkpoint
    (end,) = cluster.see(cluster.report("worker-0", "saved", 10, "checkpoint_last.pt"))
    assert 130 == end.exit_code


def test_a_signal_before_training_began_ends_at_once():
    cluster = Cluster()
    cluster.see(room={"a": 1})
    (end,) = cluster.see(signal=2)
    assert 130 == end.exit_code


def test_training_is_over_when_rank_0_has_written_the_last_checkpoint():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    assert [] == cluster.see(cluster.report("worker-1", "finished", 20))
    (end,) = cluster.see(cluster.report("worker-0", "finished", 20))
    assert 0 == end.exit_code


def test_rank_0_dying_in_the_last_checkpoint_costs_nothing():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-1", "finished", 20))
    (save,) = cluster.see(cluster.report("worker-0", "ended", text="was killed"))
    assert ("worker-1", False) == (save.worker, save.as_checkpoint)
    (start,) = cluster.see(cluster.report("worker-1", "saved", 20, "memory"))
    assert 20 == start.source.update


def test_a_node_on_which_workers_do_not_start_is_tried_less_and_less_often():
    cluster = Cluster()
    for wait in (1, 2):
        (place,) = cluster.see(room={"bad": 1})
        assert [] == cluster.see(Gone(place.worker, "No module named 'fairseq'"), room={"bad": 1})
        assert [] == cluster.see(room={"bad": 1}, after=wait - 0.1)
        cluster.see(after=0.1)
    (place,) = cluster.see(room={"bad": 1})
    (end,) = cluster.see(Gone(place.worker, "No module named 'fairseq'"))
    assert 1 == end.exit_code
    assert "No module named 'fairseq'" in end.message


def test_no_worker_is_placed_on_a_dead_node_that_is_still_shown():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(Gone("worker-1", "its node has died", with_node=True), room={"b": 1}, after=1)
    assert 0 == len(only(cluster.see(room={"b": 1}, after=60), protocol.Place))


def test_a_worker_that_is_cut_off_is_lost_before_the_cluster_says_so():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    last = cluster.now
    assert [] == cluster.see(heard={"worker-1": last}, after=UNHEARD_S)
    holds = cluster.see(heard={"worker-1": last}, after=0.1)
    assert {"worker-0", "worker-1"} == {hold.worker for hold in holds}
    heard = {"worker-0": cluster.now, "worker-1": last}
    cluster.see(cluster.report("worker-0", "held", 10), heard=heard)
    (save,) = cluster.see(heard={**heard, "worker-0": cluster.now + 2}, after=1.1)
    (start,) = cluster.see(cluster.report("worker-0", "saved", 10, "memory"), heard=heard)
    assert ("worker-0",) == start.ranks
    assert cluster.state.strikes.failures == (), "a lost machine is nobody's fault"


def test_a_hang_is_judged_by_the_runs_own_pace_and_its_stacks_are_kept():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    for update in range(11, 20):
        cluster.see(cluster.report("worker-0", "advanced", update), after=7)
    assert [] == cluster.see(after=69)
    holds = cluster.see(after=2)
    assert [True, True] == [hold.with_stacks and hold.at_once for hold in holds]
    cluster.see(cluster.report("worker-0", "stacks", text="in all_reduce"))
    stacks = cluster.actions[-1].event
    assert ("stacks", "in all_reduce") == (stacks.kind, stacks.details["stacks"])
    cluster.see(cluster.report("worker-0", "held", 19))
    cluster.see(cluster.report("worker-1", "ended", None, "did not answer, and was killed"))
    (start,) = cluster.see(cluster.report("worker-0", "saved", 19, "memory"))
    assert 2 == len(start.ranks)
    assert ["HUNG"] == [f.cause.value for _, f in cluster.state.strikes.failures]


def test_a_node_that_is_to_go_is_left_at_a_boundary():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    holds = cluster.see(draining={"a": cluster.now + 60})
    assert [False, False] == [hold.at_once for hold in holds]
    cluster.see(cluster.report("worker-0", "held", 10))
    (save,) = cluster.see(cluster.report("worker-1", "held", 10))
    assert "worker-1" == save.worker, "not in the memory of the node that goes"
    remove, start = cluster.see(cluster.report("worker-1", "saved", 10, "memory"))
    assert (protocol.Remove("worker-0"), ("worker-1",)) == (remove, start.ranks)
    assert [] == cluster.see(room={"a": 1}, after=1)
    assert () == cluster.state.strikes.failures


def test_when_every_node_is_to_go_the_state_goes_to_the_save_dir():
    cluster = Cluster()
    cluster.train({"a": 1})
    (hold,) = cluster.see(Notice("worker-0", "spot instance", cluster.now + 120))
    (save,) = cluster.see(cluster.report("worker-0", "held", 10))
    assert save.as_checkpoint
    (remove,) = cluster.see(cluster.report("worker-0", "saved", 10, "checkpoint_last.pt"))
    (place,) = cluster.see(room={"a": 1, "b": 1}, after=1)
    assert (protocol.Remove("worker-0"), "b") == (remove, place.node)
    (start,) = cluster.see(Ready(place.worker))
    assert protocol.Source("checkpoint_last.pt", 10, None) == start.source


def test_when_all_processes_die_the_newest_of_snapshots_and_checkpoint_serves():
    for checkpoint, expected in ((8, "b"), (10, None)):
        cluster = Cluster()
        cluster.train({"a": 1, "b": 1})
        cluster.see(cluster.report("worker-0", "snapshot", 8, "memory"))
        cluster.see(cluster.report("worker-1", "snapshot", 9, "memory"))
        cluster.see(cluster.report("worker-0", "checkpoint", checkpoint, "checkpoint_last.pt"))
        cluster.see(cluster.report("worker-0", "ended", text="was killed"))
        (start,) = cluster.see(cluster.report("worker-1", "ended", text="was killed"))
        assert (expected, max(9, checkpoint)) == (start.source.node, start.source.update)


def test_a_snapshot_that_somebody_removed_gives_way_to_the_next_best():
    cluster = Cluster()
    cluster.train({"a": 1})
    cluster.see(cluster.report("worker-0", "checkpoint", 7, "checkpoint_last.pt"))
    cluster.see(cluster.report("worker-0", "snapshot", 9, "memory"))
    (start,) = cluster.see(cluster.report("worker-0", "ended", text="was killed"))
    assert "memory" == start.source.path
    (start,) = cluster.see(cluster.report("worker-0", "missing", text="memory"))
    assert "checkpoint_last.pt" == start.source.path


def test_a_node_that_fails_again_and_again_is_left_out_for_longer_each_time():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    update, pauses = 10, []
    for _ in range(2):
        for _ in range(nodes.SUSPECT_AFTER):
            assert 2 == len(cluster.state.ranks)
            fail(cluster, "worker-1", "ended", update, "was killed")
            update += 1
            cluster.see(cluster.report("worker-0", "advanced", update))
        assert ("worker-0",) == cluster.state.ranks
        begin = cluster.now
        while Phase.TRAINING is cluster.state.phase:
            cluster.see(cluster.report("worker-0", "advanced", update), after=1)
        pauses.append(cluster.now - begin)
        cluster.see(cluster.report("worker-0", "held", update))
        cluster.see(cluster.report("worker-0", "saved", update, "memory"))
        cluster.see(cluster.report("worker-0", "advanced", update + 1))
    assert [nodes.FIRST_COOL_DOWN_S, 2 * nodes.FIRST_COOL_DOWN_S] == pauses


def test_where_nodes_come_and_go_fast_newcomers_must_last_before_they_are_taken_in():
    cluster = Cluster()
    cluster.train({"a": 8})
    now = cluster.now
    # a stop costs 4 s, and a node is lost every 10 s
    losses = tuple(now - 10.0 * i for i in range(5, 0, -1))
    cluster.state = dataclasses.replace(cluster.state, stall_s=4.0, losses=losses)
    (place,) = cluster.see(room={"b": 1})
    cluster.see(Ready(place.worker))
    assert [] == cluster.see(after=30)
    cluster.state = dataclasses.replace(cluster.state, losses=())
    assert 8 == len(cluster.see(after=0))


def test_a_state_whose_saver_is_cut_off_gives_way_to_the_next():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1, "c": 1})
    cluster.see(cluster.report("worker-0", "ended", text="was killed"))
    cluster.see(cluster.report("worker-1", "held", 10))
    (save,) = cluster.see(cluster.report("worker-2", "held", 10))
    last = cluster.now
    (again,) = cluster.see(heard={save.worker: last}, after=UNHEARD_S + 0.1)
    assert ("worker-1", "worker-2") == (save.worker, again.worker)


def test_reports_of_an_earlier_generation_change_nothing():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    fail(cluster, "worker-1", "ended", 10, "was killed")
    before = cluster.state
    cluster.see(Report("worker-0", 1, "ended", text="killed to make way"))
    assert before == cluster.state


def test_a_step_with_ten_thousand_slots_takes_under_20_ms():
    cluster = Cluster()
    cluster.train({f"node-{i}": 8 for i in range(1250)})
    assert 10_000 == len(cluster.state.ranks)
    steps = []
    for update in range(11, 32):
        heard = dict.fromkeys(cluster.state.workers, cluster.now)
        begin = time.perf_counter()
        cluster.see(cluster.report("worker-77", "advanced", update), after=1, heard=heard)
        steps.append(time.perf_counter() - begin)
    assert statistics.median(steps) < 0.02
