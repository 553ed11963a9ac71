"""A start goes on from the newest whole checkpoint there is, and a recovery, too."""

import glob
import os
import shutil

import data
import pytest
import torch
from runs import kill, ray_train

from fairseq_ray_plugin.checkpoints import archive, manifests

OPTIONS = (
    *(*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation"),
    *("--save-interval-updates", "10", "--ray-max-workers", "1", "--ray-snapshot-updates", "0"),
)
LAST, AT_10, AT_20 = "checkpoint_last.pt", "checkpoint_1_10.pt", "checkpoint_1_20.pt"


def train(folder, text, updates, address, *options, **fields):
    more = ("--max-update", updates, *options)
    return ray_train(folder, text, OPTIONS, *more, address=address, **fields)


@pytest.fixture
def node(nodes):
    nodes.add()
    return nodes.address


@pytest.fixture(scope="module")
def trained(tmp_path_factory, english):
    """A save dir after 20 updates, and the curve of 30 updates that nothing happened to."""
    folder = tmp_path_factory.mktemp("trained")
    whole = train(folder / "undisturbed", english, 30, "local").finish()
    train(folder / "before", english, 20, "local").finish()
    return folder / "before" / "save", whole.curve()


@pytest.fixture
def folder(trained, tmp_path):
    """Of a run that can be gone on with."""
    shutil.copytree(trained[0], tmp_path / "save")
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def put_other_files(save_dir):
    torch.save({"embeddings": torch.ones(3)}, save_dir / "embeddings.pt")
    torch.save({"model": {}, "optimizer_history": [{"num_updates": 99}]}, save_dir / "crash.pt")
    (save_dir / "torn.pt").write_bytes(b"PK")


def spoil_two(save_dir):
    damage(save_dir / LAST)
    damage(save_dir / AT_20)


def lose_last(save_dir):
    (save_dir / LAST).unlink()


def cut_last(save_dir):
    put_other_files(save_dir)
    content = (save_dir / LAST).read_bytes()
    (save_dir / LAST).write_bytes(content[: len(content) // 2])


def leave_an_older_last(save_dir):
    put_other_files(save_dir)
    shutil.copyfile(save_dir / AT_10, save_dir / LAST)


@pytest.mark.parametrize(
    ("change", "source", "said"),
    [
        (leave_an_older_last, AT_20, None),
        (cut_last, AT_20, f"{LAST} is damaged: it is cut short"),
        (spoil_two, AT_10, f"{AT_20} is damaged: record "),
    ],
)
def test_a_start_goes_on_from_the_newest_whole_checkpoint(
    change, source, said, folder, trained, english, node
):
    change(folder / "save")
    run = train(folder, english, 30, node).finish()
    first = int(source.split("_")[-1].removesuffix(".pt")) + 1
    assert {u: trained[1][u] for u in range(first, 31)} == run.curve()
    assert f"going on from {folder}/save/{source}, after update {first - 1}" in run.output
    assert said is None or said in run.output


def test_each_checkpoint_is_whole_and_has_a_manifest(trained):
    save_dir, _ = trained
    for name, updates in ((LAST, 20), (AT_10, 10), (AT_20, 20)):
        facts = manifests.read(str(save_dir / name)).facts
        assert (updates, 1, 1) == (facts.updates, facts.epoch, facts.world_size)
        archive.check(str(save_dir / name))
    table = data.run_tool("checkpoints", save_dir)
    assert 3 == table.count(" whole\n")
    assert [] == [*save_dir.glob("*.tmp")]


def test_a_training_that_is_at_its_end_ends_at_once(folder, english, node):
    lose_last(folder / "save")
    assert {} == train(folder, english, 20, node).finish().curve()


def test_where_none_is_whole_or_the_one_that_was_named_is_not_training_is_refused(
    folder, english, node
):
    save_dir = folder / "save"
    spoil_two(save_dir)
    run = train(folder, english, 30, node, "--restore-file", save_dir / LAST)
    assert 1 == run.wait()
    assert f"{save_dir / LAST} is damaged: record " in run.lines[-1]
    damage(save_dir / AT_10)
    again = train(folder, english, 30, node)
    assert 1 == again.wait()
    assert f"no whole checkpoint is in {save_dir}: {LAST} (record " in again.lines[-1]
    for output in (run.output, again.output):
        assert "Traceback" not in output and "train_inner" not in output


def test_a_recovery_passes_over_a_checkpoint_that_is_damaged(folder, trained, english, node):
    run = train(folder, english, 40, node, pause_s=0.2)
    run.until_update(32)
    damage(run.save_dir / LAST)
    damage(run.save_dir / "checkpoint_1_30.pt")
    (rank,) = run.ranks()
    for snapshot in glob.glob(f"/dev/shm/fairseq_ray_*{rank['node']}/*.raw"):
        os.remove(snapshot)
    kill(rank["pid"])
    run.finish()
    assert f"{LAST} cannot be gone on from: record " in run.output
    assert f"going on from {run.save_dir / AT_20}, after update 20" in run.output
    assert 10 <= run.redone()
    assert {u: trained[1][u] for u in range(21, 31)} == {u: run.curve()[u] for u in range(21, 31)}


def test_what_a_training_before_has_left_is_not_gone_on_from(folder, english, node):
    """It was begun anew in the same folder, and has not come as far."""
    old = torch.load(folder / "save" / AT_20, weights_only=False)
    train(folder, english, 5, node, "--restore-file", "none.pt").finish()
    run = train(folder, english, 8, node).finish()
    assert [6, 7, 8] == [*run.curve()]
    new = torch.load(folder / "save" / LAST, weights_only=False)
    assert old["extra_state"]["elastic"]["training"] != new["extra_state"]["elastic"]["training"]
