"""A process makes a checkpoint of a snapshot, and an object store has it as a folder would."""

import os

import pytest
import test_writer
from test_writer import load, plan, snapshot

from fairseq_ray_plugin.assignment import WriteCheckpoint, Written
from fairseq_ray_plugin.checkpoints import claim_places, published, stores
from fairseq_ray_plugin.checkpoints.contents import EXTRA

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def write(tmp_path):
    """What came of it; the store is a folder, through its URL."""

    def write(path, target=None, store=f"file://{tmp_path}/store"):
        if target is not None:
            target = f"{store}/{target}"
        task = WriteCheckpoint(path, target, 0, store, str(tmp_path / "passage"))
        return test_writer.write_task(task)

    return write


@pytest.fixture
def there(tmp_path):
    return tmp_path / "store"


def updates(there):
    return {
        path.name: load(path)["optimizer_history"][-1]["num_updates"] for path in there.glob("*.pt")
    }


def test_it_has_all_the_names_that_fairseq_gives_it(tmp_path, write, there):
    for update, loss, best in ((10, 5.0, None), (20, 6.0, 5.0), (30, 4.0, 5.0)):
        due = plan("of the rank", update, loss, best, keep_interval_updates=2)
        assert Written(f"file://{there}/checkpoint_last.pt") == write(
            snapshot(tmp_path, update, due)
        )
    assert updates(there) == {
        "checkpoint_1_20.pt": 20,
        "checkpoint_1_30.pt": 30,
        "checkpoint_best.pt": 30,
        "checkpoint_last.pt": 30,
    }
    found = published.published(stores.open_store(str(there)))
    assert sorted(updates(there)) == [one.name for one in found]
    assert {"this"} == {one.facts["training"] for one in found}
    assert [20, 30, 30, 30] == [one.facts["updates"] for one in found]
    last = load(there / "checkpoint_last.pt")
    assert f"file://{there}" == last["cfg"]["checkpoint"]["save_dir"], "and not the rank's folder"
    assert {"scaler": 1} == last["extra_state"][EXTRA]["left_out"]
    assert not (tmp_path / "passage").exists() and not os.path.exists("of the rank")


def test_a_snapshot_becomes_the_runs_last_checkpoint_with_all_that_is_in_it(tmp_path, write, there):
    target = f"file://{there}/checkpoint_last.pt"
    assert Written(target) == write(snapshot(tmp_path, 12), "checkpoint_last.pt")
    assert "params" in load(there / "checkpoint_last.pt")["extra_state"][EXTRA]["left_out"]


def test_an_older_state_does_not_take_the_name_of_a_newer_one(tmp_path, write, there):
    write(snapshot(tmp_path, 20, plan("", 20)))
    write(snapshot(tmp_path, 10, plan("", 10)))
    write(snapshot(tmp_path, 11), "checkpoint_last.pt")
    newer = {"checkpoint_1_10.pt": 10, "checkpoint_1_20.pt": 20, "checkpoint_last.pt": 20}
    assert newer == updates(there)
    write(snapshot(tmp_path, 12, training="begun anew"), "checkpoint_last.pt")
    assert 12 == updates(there)["checkpoint_last.pt"]


def test_what_a_store_did_not_take_is_made_once_more(tmp_path, write, there):
    """It is away as the copies are made: what is there by then is whole."""
    due = snapshot(tmp_path, 20, plan("", 20))
    there.mkdir()
    (there / "checkpoint_last.pt").mkdir()  # nothing can be put there
    assert write(due).endswith(": Is a directory")
    assert (there / "checkpoint_1_20.pt").exists() and os.path.exists(due)
    (there / "checkpoint_last.pt").rmdir()
    assert isinstance(write(due), Written)
    assert {"checkpoint_1_20.pt": 20, "checkpoint_last.pt": 20} == updates(there)


def test_a_store_that_does_not_answer_is_said_in_a_line(tmp_path, write, monkeypatch):
    from fairseq_ray_plugin.checkpoints import s3

    impatient = s3.Patience(attempts=1)
    monkeypatch.setattr(s3, "Patience", lambda: impatient)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    reason = write(snapshot(tmp_path, 10, plan("", 10)), store="s3://bucket/run")
    assert reason.startswith("s3://bucket/run") and "cannot be reached" in reason
    assert "hidden" not in reason


def test_a_save_dir_that_another_run_has_taken_is_left_to_it(tmp_path, write, there):
    claim_places.place_of(f"file://{there}").create("1.json", b"{}")
    for path, target in (
        (snapshot(tmp_path, 10, plan("", 10)), None),
        (snapshot(tmp_path, 11), "checkpoint_last.pt"),
    ):
        assert "was taken over by another run" in write(path, target)
    assert {} == updates(there)
