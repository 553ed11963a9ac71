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
    assert 3 == len([s for s in run.events("stopped") if s["cause"].startswith("LOST")])

    assert recorded.tensorboard(quiet.folder / "tb") == recorded.tensorboard(folder / "tb")
    expected = recorded.json_lines((quiet.folder / "log.txt").read_text())
    assert expected == recorded.json_lines((folder / "log.txt").read_text())
    assert {1} == {len(lines) for lines in expected.values()}
    (_,), points, _ = recorded.wandb(quiet.folder)
    names, disturbed, codes = recorded.wandb(folder)
    assert 1 == len(names), "it is one run"
    assert points == disturbed, "each value is the same, wherever it was written"
    assert codes[-1] == 0, "finished as stock finishes it"
