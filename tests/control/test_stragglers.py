"""Who is slow for a minute is named, once; nobody else is."""

import random

from fairseq_ray_plugin.activity import Own
from fairseq_ray_plugin.control.stragglers import WINDOW_S, Strides

RANKS = ("a", "b", "c", "d")


class Play:
    """Ranks that speak once a second."""

    def __init__(self, *ranks):
        self.now, self.strides, self.named = 0.0, Strides(), []
        self.strides.begin(ranks or RANKS, self.now)

    def run(self, seconds, noise=0.0, data=None, batch_s=0.1, silent=(), **slow):
        """Time passes; `slow` says how many times longer a rank's mini-batches take."""
        for _ in range(seconds):
            self.now += 1
            for rank in sorted(self.strides._workers - set(silent)):
                took = batch_s * slow.get(rank, 1.0) * (1 + noise * random.random())
                waited = (data or {}).get(rank, 0.0)
                batches = max(1, round(1 / took))
                own = Own(batches=batches, computing=batches * took, data=batches * waited)
                self.strides.hear(rank, own)
            self.named += [(self.now, rank) for rank in self.strides.look(self.now)]
        return self


def test_a_rank_that_is_slow_for_a_minute_is_named_once():
    play = Play().run(600, c=1.5, noise=0.1)
    ((at, name),) = play.named
    assert "c" == name and 60 <= at <= 60 + 2 * WINDOW_S
    slow = play.strides.slow["c"]
    assert 1.3 < slow.ratio < 1.7 and 0.1 < slow.stride.computing < 0.2


def test_of_two_ranks_the_slow_one_is_named():
    assert ["b"] == [name for _, name in Play("a", "b").run(120, b=1.4).named]


def test_what_is_slow_by_less_or_for_less_is_not_named():
    assert [] == Play().run(600, a=1.2, noise=0.05).named
    play = Play()
    for _ in range(10):
        play.run(40, a=3.0).run(20)
    assert [] == play.named


def test_one_long_stall_in_a_minute_is_not_slowness():
    play = Play()
    for _ in range(10):
        play.run(59).run(1, a=300.0)
    assert [] == play.named


def test_who_waits_for_data_is_slow_too():
    play = Play().run(120, data={"d": 0.08})
    assert ["d"] == [name for _, name in play.named]
    stride = play.strides.slow["d"].stride
    assert stride.data > 0.07 and stride.computing < 0.11


def test_who_was_named_is_named_again_only_when_it_had_been_fast():
    play = Play().run(100, a=1.5).run(600, a=1.22).run(200, a=1.5)
    assert 1 == len(play.named) and "a" in play.strides.slow
    play.run(60)
    assert {} == play.strides.slow
    assert 2 == len(play.run(100, a=1.5).named)


def test_another_generation_begins_anew_and_does_not_name_the_same_again():
    play = Play().run(100, a=1.5, b=1.01)
    play.strides.begin(("a", "b", "e"), play.now)
    assert {} == play.strides.latest
    play.run(200, a=1.5)
    assert ["a"] == [name for _, name in play.named]
    play.strides.begin(("b", "e"), play.now)
    assert {} == play.strides.slow
    play.strides.hear("a", Own(batches=1, computing=1.0, data=0.0))
    assert [] == play.run(100).named[1:], "it is not in it any more"


def test_updates_of_minutes_are_judged_by_several():
    play = Play()
    for _ in range(10):
        play.run(1, batch_s=90.0, a=2.0)
        play.now += 89
    ((at, name),) = play.named
    assert "a" == name and at >= 180


def test_a_rank_that_says_nothing_lets_nobody_be_judged():
    assert [] == Play().run(300, silent=("b",), a=2.0).named


def test_ranks_with_more_mini_batches_in_an_update_are_not_slow():
    strides = Strides()
    strides.begin(("a", "b"), 0.0)
    for now in range(1, 200):
        strides.hear("a", Own(batches=2, computing=0.4, data=0.0))
        strides.hear("b", Own(batches=1, computing=0.2, data=0.0))
        assert {} == strides.look(float(now))
