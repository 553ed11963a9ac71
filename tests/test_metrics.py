"""A run's figures as metrics: which are set, what grows, and what the dashboard shows of them."""

import json
import re
import subprocess
import sys

import journals
import pytest

from fairseq_ray_plugin import metrics
from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.accounting.beat import Beat
from fairseq_ray_plugin.accounting.live import Follower

BEAT = Beat(
    generation=3,
    world_size=2,
    update=90,
    updates_per_s=2.0,
    samples_per_s=128.0,
    loss=5.5,
    strides=(0.5, 0.9),
    slow={("node-a", 1): 1.8},
    num_left_out=1,
    recovery_s=0.7,
)


class Ray:
    """In the place of Ray's metrics: name and labels -> value."""

    def __init__(self, values, name, description, tag_keys):
        self.values, self.name, self.labels = values, name, set(tag_keys)

    def set(self, value, labels):
        assert set(labels) == self.labels, "Prometheus wants all of them, always"
        self.values[(self.name, *sorted(labels.items()))] = value

    def inc(self, more, labels):
        assert more > 0
        key = self.name, *sorted(labels.items())
        self.set(self.values.get(key, 0.0) + more, labels)


@pytest.fixture
def values(monkeypatch):
    there = {}
    for kind in ("Gauge", "Counter"):
        monkeypatch.setattr(metrics, kind, lambda *args: Ray(there, *args))
    return there


def a_run():
    made = journals.Made(now=1.7e9).come("w0", "w1", ready_after=5).begin("w0", "w1")
    made.progress(20, after=20, loading=0.4, training=19.0)
    made.write("checkpoint", path="last.pt", seconds=1.5, bytes=4096)
    made.write("unsaved", cause="no room")
    made.stop("HUNG: no progress for 30 s", 0.2, "node-w1", update=20, training=19.0, in_flight=30)
    return made.begin("w0", source=20).progress(40, after=20, loading=0.1, training=19.0)


def live(made, beat=BEAT):
    follower = Follower()
    for line in made.lines:
        follower.hear(line)
    return follower.now(beat, made.now)


def test_all_of_a_run_is_set_with_its_save_dir(values):
    metrics.Metrics("s3://bucket/run")(live(a_run()))
    assert {("run", "s3://bucket/run")} <= set.intersection(*(set(key[1:]) for key in values))
    by_name = {}
    for (name, *labels), value in values.items():
        rest = tuple(v for k, v in labels if k != "run")
        by_name.setdefault(name.removeprefix("fairseq_ray_"), {})[rest] = value
    assert {*metrics.GAUGES, *metrics.COUNTERS} == set(by_name)
    assert {("median",): 0.5, ("slowest",): 0.9} == by_name["batch_seconds"]
    assert {("node-a", "1"): 1.8} == by_name["straggler_ratio"]
    assert {("HUNG",): 1} == by_name["stops_total"]
    assert {(): 4096} == by_name["checkpoint_size_bytes"]
    assert {(): 1} == by_name["checkpoint_failures_total"] == by_name["checkpoints_total"]
    told = account(a_run().lines)
    for spent, seconds in told.spent.items():
        if seconds:
            assert by_name["slot_seconds_total"][(spent.value,)] == pytest.approx(seconds)
    assert by_name["goodput_ratio"][()] == pytest.approx(told.goodput)


def test_counters_only_grow_and_who_is_not_slow_any_more_is_said_to_be(values):
    made, shown = a_run(), metrics.Metrics("save")
    before = {}
    for second in range(200):
        made.now += 1
        if second == 100:  # what counted as training may have been a hang
            made.stop("HUNG: no progress", 0.2, "node-w0")
        shown(live(made, BEAT))
        after = {key: value for key, value in values.items() if key[0].endswith("_total")}
        assert all(after[key] >= value for key, value in before.items())
        before = after
    (slow,) = [key for key in values if "straggler" in key[0]]
    assert 1.8 == values[slow]
    shown(live(made, Beat(**vars(BEAT) | {"slow": {}})))
    assert 0.0 == values[slow]


def test_names_and_units_are_as_prometheus_wants_them():
    for name in metrics.GAUGES:
        assert re.fullmatch(r"[a-z_]+", name) and not name.endswith("_total")
        assert not re.search(r"_(ms|minutes|mb|percent)$", name)
    assert all(name.endswith("_total") for name in metrics.COUNTERS)


def dashboard():
    command = [sys.executable, "-m", "fairseq_ray_plugin", "dashboard"]
    return json.loads(subprocess.check_output(command, text=True))


def test_the_dashboard_shows_every_metric_and_no_other():
    there = dashboard()
    said = json.dumps([panel["targets"] for panel in there["panels"]])
    names = set(re.findall(r"ray_fairseq_ray_(\w+)\{", said))
    assert {*metrics.GAUGES, *metrics.COUNTERS} == names
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in there["panels"])
    for labels in re.findall(r"\{\{(\w+)\}\}", said):
        assert labels in {"run", *sum(metrics.LABELS.values(), ())}
    boxes = [panel["gridPos"] for panel in there["panels"]]
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
