"""The driver's loop against a cluster that fails: nothing that is only bookkeeping ends a run."""

import types

import pytest

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import loop
from fairseq_ray_plugin.control.state import End
from fairseq_ray_plugin.driver import MAX_DEFECTS, MAX_UNSTARTED, Driver, Patience
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import (
    FromRank,
    Heard,
    Held,
    Hold,
    Publish,
    Ready,
    Save,
    Saved,
    Tell,
)
from fairseq_ray_plugin.report.journal import Journal


class Cluster:
    """One worker, which answers at once; what a test names goes wrong."""

    def __init__(self, wrong=(), always=False):
        self.wrong, self.always = set(wrong), always
        self.now, self.events, self.room = 0.0, [], {"node": 1}
        self.unreached = []

    def observe(self, signal=None, unreached=()):
        if "observe" in self.wrong:
            raise RuntimeError("observe")
        self.now += 1
        self.unreached += unreached
        events, self.events = [*unreached, *self.events], []
        room, self.room = self.room, {}
        return protocol.Observation(now=self.now, room=room, events=tuple(events), signal=signal)

    def describe(self):
        if "describe" in self.wrong:
            raise RuntimeError("describe")
        return "a cluster"

    def perform(self, action):
        if type(action).__name__ in self.wrong:
            if not self.always:
                self.wrong.discard(type(action).__name__)
            raise RuntimeError("perform")
        match action:
            case protocol.Place(worker):
                self.events.append(Heard(worker, Ready()))
            case Tell(worker, Hold(generation)):
                self.events.append(Heard(worker, FromRank(1, Held(7, generation))))
            case Tell(worker, Save() | Publish()):
                self.events.append(Heard(worker, FromRank(1, Saved(7, "checkpoint_last.pt"))))


def drive(tmp_path, cluster, turns=300, signal_at=15, claim=None):
    driver = Driver(cluster, ElasticConfig(), None, Journal(str(tmp_path)), claim)
    for turn in range(turns):
        if driver.end is None:
            driver.turn(15 if turn >= signal_at else None)
    driver.close()
    return driver


@pytest.mark.parametrize("wrong", ["describe", "Tell", "Start"])
def test_an_action_that_cannot_be_done_is_said_once_and_the_loop_goes_on(tmp_path, caplog, wrong):
    driver = drive(tmp_path, cluster := Cluster([wrong]))
    assert 143 == driver.end.exit_code
    assert "checkpoint_last.pt is the state after update 7" in driver.end.message
    assert 1 == caplog.text.count("could not be done; training goes on")
    assert (wrong != "describe") == bool(cluster.unreached), "the loop knows what did not arrive"


def test_a_start_that_can_never_be_told_ends_the_run_as_a_defect(tmp_path, caplog):
    driver = drive(tmp_path, Cluster(["Start"], always=True), signal_at=300)
    assert loop.DEFECT == driver.end.exit_code and "RuntimeError" in driver.end.message
    assert 1 == caplog.text.count("Start could not be done; training goes on")
    assert driver.state.generation <= MAX_UNSTARTED + 1


def test_a_claim_on_the_save_dir_that_is_lost_ends_the_run(tmp_path):
    claim = types.SimpleNamespace(lost="a run on host-b")
    driver = drive(tmp_path, Cluster(), claim=claim, signal_at=300)
    assert 1 == driver.end.exit_code
    assert "--save-dir was taken over by a run on host-b" in driver.end.message


def test_a_cluster_that_cannot_be_observed_ends_the_run_in_the_end(tmp_path, caplog):
    driver = drive(tmp_path, Cluster(["observe"]), turns=MAX_DEFECTS + 1)
    assert loop.DEFECT == driver.end.exit_code
    assert 1 == caplog.text.count("the cluster could not be observed")


def test_a_loop_that_is_wrong_again_and_again_ends_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.stopping, "end_when_saved", lambda *_: 1 // 0)
    driver = drive(tmp_path, Cluster(), signal_at=5)
    assert End(loop.DEFECT, driver.end.message) == driver.end
    assert "ZeroDivisionError" in driver.end.message


def test_what_is_waited_for_is_said_again_soon_and_then_more_and_more_seldom():
    patience = Patience()
    patience.spoke(100.0)
    said = [now - 100 for now in range(100, 2000) if patience.is_over(float(now))]
    assert [5, 15, 35, 75, 155, 315, 615, 915] == said[:8]
    patience.spoke(2000.0)
    assert not patience.is_over(2004.0) and patience.is_over(2005.0)


@pytest.mark.parametrize(
    ("wrong", "since", "exit_code"),
    [([], 0, 143), (["Start"], 0, loop.DEFECT), (["observe"], 10, loop.DEFECT)],
)
def test_the_last_lines_say_where_the_time_went_and_where_there_is_more(
    wrong, since, exit_code, tmp_path, caplog
):
    caplog.set_level("INFO")
    cluster = Cluster()
    driver = Driver(cluster, ElasticConfig(), None, Journal(str(tmp_path)))
    for turn in range(300):
        if turn == since:
            cluster.wrong, cluster.always = set(wrong), True
        if driver.end is None:
            driver.turn(15 if turn >= 15 and not wrong else None)
    driver.close()
    assert exit_code == driver.end.exit_code
    told = [line for line in caplog.text.splitlines() if "goodput" in line]
    assert 1 == len(told)
    assert told[0].endswith(f"more: python -m fairseq_ray_plugin report {tmp_path}")


def test_an_account_that_cannot_be_made_ends_no_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fairseq_ray_plugin.control.chronicle._slots", lambda *_: 1 // 0)
    monkeypatch.setattr("fairseq_ray_plugin.driver.account", lambda lines: 1 // 0)
    driver = drive(tmp_path, Cluster())
    assert 143 == driver.end.exit_code
    assert 1 == caplog.text.count("the account of the run is not complete")


def test_who_watches_is_shown_the_run_and_may_fail(tmp_path, caplog):
    seen = []
    watchers = [lambda live: 1 // 0, seen.append]
    driver = Driver(Cluster(), ElasticConfig(), None, Journal(str(tmp_path)), watchers=watchers)
    for turn in range(30):
        if driver.end is None:
            driver.turn(15 if turn >= 20 else None)
    driver.close()
    assert 143 == driver.end.exit_code
    assert 1 == seen[-2].beat.world_size and 1 == seen[-2].beat.generation
    assert seen[-1].last_event[1].startswith("interrupted")
