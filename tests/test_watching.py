"""A run that goes on, as it is shown once a second."""

import journals
import pytest
from test_metrics import BEAT, a_run, live

from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.accounting.beat import Beat
from fairseq_ray_plugin.accounting.live import Follower
from fairseq_ray_plugin.page import words
from fairseq_ray_plugin.watching import Watch


def test_it_is_shown_once_a_second_and_not_to_who_fails(caplog):
    seen, beats = [], []

    def fail(live):
        raise OSError("no terminal any more")

    watch = Watch([fail, seen.append])
    for line in a_run().lines:
        watch.hear(line)
    for tick in range(50):
        watch.look(lambda: beats.append(1) or BEAT, 0.1 * tick)
    assert 5 == len(seen) == len(beats)
    assert 1 == caplog.text.count("this run is not shown there any more")
    assert {"HUNG": 1} == seen[-1].stops


def test_where_nobody_watches_nothing_is_computed():
    watch = Watch([])
    watch.hear({"kind": "odd"})
    watch.look(lambda: 1 // 0, 0.0)


def test_the_account_so_far_is_that_of_the_whole_journal_at_every_line():
    made = journals.Made(lines=journals.long_run(400))
    follower, heard = Follower(), []
    for line in made.lines:
        line = {**line, "run": ""}
        heard.append(line)
        follower.hear(line)
        there, whole = follower.now(BEAT, line["time"]), account(heard)
        assert whole.spent == pytest.approx(there.spent, abs=1e-3)
        assert whole.goodput == pytest.approx(there.goodput, abs=1e-6)


def test_a_run_of_which_nothing_is_known_yet_can_be_shown():
    assert "0 workers | update 0 | goodput 0.000" == words.status(
        Follower().now(
            Beat(**vars(BEAT) | dict(world_size=0, update=0, updates_per_s=0, slow={})), 0
        ),
        0.0,
    )


def test_the_line_says_how_it_is_and_what_was_last():
    made = a_run().write("checkpoint", path="last.pt")
    said = words.status(live(made), made.now + 61)
    assert said.startswith("2 workers | update 90 | 2 updates/s | goodput 0.")
    assert "| slow: rank 1 on node-a, 80% over the median |" in said
    assert said.endswith("| 61 s ago checkpoint: after update 40")
    for kind, cause in (("progress", None), ("slots", None)):
        made.write(kind, cause=cause, seconds={})
    assert "checkpoint" in words.status(live(made), made.now), "what is no news is not told"
