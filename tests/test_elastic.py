"""The control loop against a cluster that is a script: no clock, no Ray, milliseconds."""

import time

from fairseq_ray_plugin import elastic
from fairseq_ray_plugin.elastic import Gone, Phase, Ready, Report
from fairseq_ray_plugin.options import ElasticConfig


class Cluster:
    """Feeds observations to the loop and remembers what it asked for."""

    def __init__(self, *, max_ranks=None, **options):
        self.config = ElasticConfig(**options)
        self.max_ranks = max_ranks
        self.state = elastic.State()
        self.now = 100.0
        self.actions = []

    def see(self, *events, room=None, signal=None, after=0.0):
        """One step; returns the actions other than log lines."""
        self.now += after
        observation = elastic.Observation(
            now=self.now, room=room or {}, events=events, signal=signal
        )
        self.state, actions = elastic.step(self.state, observation, self.config, self.max_ranks)
        self.actions += actions
        return [action for action in actions if not isinstance(action, elastic.Log)]

    def report(self, worker, kind, update=None, text="", **fields):
        return Report(worker, self.state.generation, kind, update, text, **fields)

    def train(self, room, update=10):
        """A generation on all of `room` has done some updates."""
        placed = [a.worker for a in self.see(room=room) if isinstance(a, elastic.Place)]
        (start,) = self.see(*map(Ready, placed))
        self.see(*(self.report(rank, "running", pid=1) for rank in start.ranks))
        self.see(*(self.report(rank, "advanced", update) for rank in start.ranks))
        return start

    @property
    def kinds(self):
        return [a.event.kind for a in self.actions if isinstance(a, elastic.Log)]


def only(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def test_a_generation_starts_when_all_that_was_placed_is_ready():
    cluster = Cluster()
    first, second = cluster.see(room={"a": 1, "b": 1})
    assert [] == cluster.see(Ready(first.worker))
    (start,) = cluster.see(Ready(second.worker))
    assert elastic.Start(1, ("worker-0", "worker-1"), None) == start


def test_a_slow_starter_is_not_waited_for_without_end():
    cluster = Cluster()
    first, _ = cluster.see(room={"a": 2})
    cluster.see(Ready(first.worker))
    (start,) = cluster.see(after=elastic.START_PATIENCE_S + 1)
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
    assert elastic.Save("worker-2", 1, as_checkpoint=False) == save
    (start,) = cluster.see(cluster.report("worker-2", "saved", 11, "memory"))
    assert elastic.Source("memory", 11, "c") == start.source
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
    (hold,) = cluster.see(after=elastic.SETTLE_S)
    assert not hold.at_once, "a planned stop lets the update end"


def test_a_silent_rank_is_left_out_and_taken_back_when_it_answers():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-0", "raised", 10, "reset", by_peer=True))
    (save,) = cluster.see(after=elastic.SILENCE_S + 0.1)
    assert "worker-0" == save.worker
    (start,) = cluster.see(cluster.report("worker-0", "saved", 10, "memory"))
    assert ("worker-0",) == start.ranks
    cluster.see(cluster.report("worker-0", "advanced", 11))
    cluster.see(Report("worker-1", 1, "held", 10))
    (hold,) = cluster.see(after=elastic.SETTLE_S)
    assert "worker-0" == hold.worker


def test_when_one_rank_rests_the_others_are_stopped_where_they_wait_for_it():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    (place,) = cluster.see(room={"c": 1})
    cluster.see(Ready(place.worker))
    holds = cluster.see(after=elastic.SETTLE_S)
    assert [False, False] == [hold.at_once for hold in holds]
    (hold,) = cluster.see(cluster.report("worker-0", "held", 10))
    assert ("worker-1", True) == (hold.worker, hold.at_once)


def test_several_newcomers_make_one_resize():
    cluster = Cluster()
    cluster.train({"a": 1})
    first, second = cluster.see(room={"b": 2})
    assert [] == cluster.see(Ready(first.worker), after=5)
    assert [] == cluster.see(Ready(second.worker), after=1)
    assert 1 == len(cluster.see(after=elastic.SETTLE_S))


def test_no_more_ranks_than_have_something_to_do():
    cluster = Cluster(max_ranks=2)
    placed = cluster.see(room={"a": 3})
    assert 2 == len(placed)


def test_the_cause_is_what_failed_first_not_its_echo_in_the_peers():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.report("worker-0", "raised", 10, "connection reset", by_peer=True))
    cluster.see(cluster.report("worker-1", "ended", text="was killed by SIGKILL"))
    stopped = next(a.event for a in cluster.actions[::-1] if isinstance(a, elastic.Log))
    assert "stopped" == stopped.kind
    assert "rank 1 (on node b) was killed by SIGKILL" in stopped.cause


def fail(cluster, rank, kind, update, text):
    """A rank fails, the other holds, and the next generation runs."""
    cluster.see(cluster.report(rank, kind, update, text))
    other = next(name for name in cluster.state.ranks if name != rank)
    actions = cluster.see(cluster.report(other, "held", update))
    for save in only(actions, elastic.Save):
        actions = cluster.see(cluster.report(save.worker, "saved", update, "memory"))
    return actions


def test_the_users_own_error_ends_the_run_at_its_second_coming_with_its_traceback():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    (start,) = fail(cluster, "worker-1", "raised", 10, "ValueError: bad sample")
    assert isinstance(start, elastic.Start)
    (end,) = fail(cluster, "worker-1", "raised", 10, "ValueError: bad sample")
    assert 1 == end.exit_code
    assert "ValueError: bad sample" in end.message


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
        assert isinstance(start, elastic.Start)
        cluster.see(cluster.report("worker-0", "advanced", update + 1))


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
    assert elastic.Save("worker-0", 1, as_checkpoint=True) == save
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


def test_a_node_on_which_workers_do_not_start_is_left_out():
    cluster = Cluster()
    for _ in range(elastic.START_TRIES):
        (place,) = cluster.see(room={"bad": 1})
        end = cluster.see(Gone(place.worker, "No module named 'fairseq'"))
    (end,) = end
    assert 1 == end.exit_code
    assert "No module named 'fairseq'" in end.message


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
    begin = time.perf_counter()
    cluster.see(cluster.report("worker-77", "advanced", 11), after=1)
    assert time.perf_counter() - begin < 0.02
