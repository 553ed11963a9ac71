"""TensorBoard, W&B and log files over kills and a fresh start: one record, as without them."""

import data
import pytest
import recorded
from runs import ray_train

pytest.importorskip("tensorboard")
pytest.importorskip("wandb")

MODEL = (*data.MASKED_LM, "--fix-batch-size", "64")
FAULTS = [
    {"rank": 1, "update": 10, "where": "forward", "what": "SIGKILL"},
    {"rank": 0, "update": 31, "where": "forward", "what": "SIGKILL"},
    # at the end of an epoch, whose averages are still to be logged
    {"rank": 0, "update": 52, "where": "checkpoint", "what": "SIGKILL"},
    {"rank": 0, "update": 60, "where": "validate", "what": "SIGKILL"},
]


def command(folder, text, cluster, **options):
    return ray_train(
        folder,
        text,
        MODEL,
        *("--max-epoch", "3", "--validate-interval-updates", "12"),
        *("--tensorboard-logdir", folder / "tb", "--log-file", folder / "log.txt"),
        *("--wandb-project", "tests"),
        address=cluster.address,
        pause_s=0.05,
        **options,
    )


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B writes to a folder alone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def to(name):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv("WANDB_DIR", str(folder))
        return folder

    return to


def test_what_users_log_is_there_once_over_kills_and_a_fresh_start(offline, english, two_nodes):
    quiet = command(offline("quiet"), english, two_nodes).finish()
    folder = offline("disturbed")
    first = command(folder, english, two_nodes, faults=FAULTS[:2])
    first.until(lambda: any("train_inner" in line and '"45"' in line for line in first.lines))
    first.process.terminate()
    assert 143 == first.wait()
    run = command(folder, english, two_nodes, faults=FAULTS).finish()
    assert 4 == len([s for s in run.events("stopped") if s["cause"].startswith("LOST")])

    check_same_record(quiet.folder, folder)


def check_same_record(quiet, disturbed):
    """The same points, each once; the last digit may differ, as from run to run."""
    there = [recorded.tensorboard(folder / "tb") for folder in (quiet, disturbed)]
    check_same(*(dict(all_points(points)) for points in there))
    texts = [(folder / "log.txt").read_text() for folder in (quiet, disturbed)]
    there = [recorded.json_lines(text) for text in texts]
    assert {1} == {len(lines) for points in there for lines in points.values()}
    check_same(*(dict(all_values(points)) for points in there))
    (name,), expected, _ = recorded.wandb(quiet)
    names, points, codes = recorded.wandb(disturbed)
    assert 1 == len(names) and {name} != names, "it is one run"
    assert {1} == {len(values) for values in points.values()}, "each value, wherever it is written"
    check_same(*({key: min(values) for key, values in of.items()} for of in (expected, points)))
    assert codes[-1] == 0, "finished as stock finishes it"


def check_same(expected, actual):
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert value == pytest.approx(actual[key], rel=1e-4), key


def all_points(points):
    for name, there in points.items():
        steps = [step for step, _ in there]
        assert len(steps) == len(set(steps)), f"{name}: a point is there twice"
        yield from (((*name, step), value) for step, value in there)


def all_values(points):
    for key, (line,) in points.items():
        yield from (((*key, name), float(value)) for name, value in line.items())
