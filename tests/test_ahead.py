"""Workers are placed before the options are read: the run has them, or they end."""

import pickle
import sys

import pytest
from runs import ray_train
from test_residence import FIXED, check_nothing_left, names

from fairseq_ray_plugin import early
from fairseq_ray_plugin.holding import Unusable
from fairseq_ray_plugin.options import ElasticConfig


def test_a_run_begins_with_the_workers_that_were_placed_ahead(tmp_path, english, two_nodes):
    options = (*FIXED, "--max-update", "3")
    run = ray_train(tmp_path, english, options, address=two_nodes.address).finish()
    first = run.events("slots")[0]
    assert {"worker-0", "worker-1"} == set(first["there"]), "the loop has found them"
    assert not run.events("taken_over")
    (started,) = run.events("started")
    assert (1, 2) == (started["generation"], started["world_size"])
    assert [1, 2, 3] == sorted(run.samples())
    check_nothing_left(run, two_nodes.address)


def test_where_the_options_are_wrong_no_worker_is_left(tmp_path, english, two_nodes):
    options = (*FIXED, "--lr-scheduler", "nonsense")
    run = ray_train(tmp_path, english, options, address=two_nodes.address)
    assert 2 == run.wait()
    assert "invalid choice: 'nonsense'" in run.output
    assert "[]" == names(two_nodes.address)
    assert not run.save_dir.exists()


def test_what_another_kind_of_slot_makes_useless_is_ended(monkeypatch):
    from fairseq_ray_plugin import ahead, head

    ended = []
    monkeypatch.setattr(head, "end_workers", ended.append)
    monkeypatch.setattr(ahead.ray, "kill", lambda loop, no_restart: ended.append(loop))
    config = ElasticConfig(cpu=True)
    site = early.site_for(config)
    useless = ahead.Ahead("here", site, config, loop="loop")
    assert useless.take(ElasticConfig(cpu=False)) is None
    assert ["loop", site.name] == ended and useless.loop is None
    useless.end()
    taken = ahead.Ahead("here", site, config, loop="loop")
    assert site == taken.take(config)
    taken.end()
    assert ["loop", site.name] == ended, "once, and the others are the run's now"


def test_what_cannot_begin_ahead_is_taken_back_and_begins_later(monkeypatch):
    from fairseq_ray_plugin import ahead, following, head

    ended = []
    monkeypatch.setattr(ahead, "connect", lambda address, may_start: "here")
    monkeypatch.setattr(following, "find", lambda save_dir: None)
    monkeypatch.setattr(following, "start", lambda save_dir, run: "loop")
    monkeypatch.setattr(head, "survey", lambda: 1 / 0)
    monkeypatch.setattr(head, "end_workers", ended.append)
    monkeypatch.setattr(ahead.ray, "kill", lambda loop, no_restart: ended.append(loop))
    config = ElasticConfig(cpu=True)
    site = early.site_for(config)
    begun = ahead.place(site, config, None, "save")
    assert ("here", None) == (begun.where, begun.loop) and ["loop", site.name] == ended


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--cpu", (True, None)),
        ("--ray-max-workers 3", (False, 3)),
        ("--batch-size 4 --fix-batch-size 8,20 --ray-max-workers 7", (False, 5)),
        ("--max-sentences 4 --fix-batch-size 8", (False, 2)),
        ("--max-tokens 100 --fix-batch-size 400", (False, 4)),
        ("--ray-address local", None),
        ("--help", None),
        ("--ray-max-workers many", None),  # which fairseq's parser will tell, as these
        ("--fix-batch-size 9 --batch-size 4", None),
        ("--ray-min-workers 4 --ray-max-workers 3", None),
    ],
)
def test_what_can_be_read_early(monkeypatch, tmp_path, options, expected):
    from fairseq_ray_plugin import ahead

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fairseq-ray-train", "data", *options.split()])
    monkeypatch.setattr(
        ahead, "place", lambda site, config, max_ranks, save_dir: (config.cpu, max_ranks)
    )
    assert expected == early.begin()


def test_a_loop_whose_command_says_nothing_gives_up(monkeypatch):
    from fairseq_ray_plugin import residence

    answers = iter([None, None, pickle.dumps("the plan")])
    monkeypatch.setattr(
        residence.internal_kv, "_internal_kv_get", lambda key, namespace: next(answers, None)
    )
    assert "the plan" == residence._await_plan("run")
    monkeypatch.setattr(residence, "PLAN_LIMIT_S", 0.05)
    with pytest.raises(Unusable, match="the command has gone"):
        residence._await_plan("run")
