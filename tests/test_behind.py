"""Checkpoints are written behind training: the same files as stock fairseq's, whatever happens."""

import os
import re
import subprocess

import data
import pytest
from params import one_of
from runs import ray_train

MODEL = (*data.MASKED_LM, "--fix-batch-size", "8")


def names(folder):
    """Checkpoints, without the digits of a loss."""
    found = [name for name in os.listdir(folder) if name.endswith(".pt")]
    return sorted(re.sub(r"(best_loss_).*", r"\1", name) for name in found)


OPTIONS = {
    "best": (
        *("--save-interval-updates", "10", "--keep-interval-updates", "2"),
        *("--keep-best-checkpoints", "2", "--patience", "99", "--keep-last-epochs", "1"),
        *("--no-last-checkpoints", "--write-checkpoints-asynchronously"),
    ),
    "pattern": (
        *("--save-interval-updates", "5", "--keep-interval-updates", "1"),
        *("--keep-interval-updates-pattern", "10"),
    ),
}


@pytest.mark.parametrize("kind", one_of(OPTIONS, "best"))
def test_fairseqs_names_and_what_it_keeps_are_those_of_stock(tmp_path, english, two_nodes, kind):
    options = ("--max-update", "40", *OPTIONS[kind])
    faults = [
        {"rank": 0, "update": 21, "where": "begin", "what": "SIGKILL"},
        {"rank": 0, "update": 30, "where": "writing", "what": "SIGKILL"},
    ]
    run = ray_train(tmp_path, english, MODEL, *options, address=two_nodes.address, faults=faults)
    run.finish()
    assert 0 == run.redone()
    # one rank, with as many sentences in an update
    stock = tmp_path / "stock"
    options = [option for option in options if option != "--write-checkpoints-asynchronously"]
    data.run_tool(
        *("train", english, *data.MASKED_LM, "--update-freq", "2", *options, "--save-dir", stock)
    )
    assert names(stock) == names(run.save_dir)
    assert [] == [name for name in os.listdir(run.save_dir) if name.endswith(".tmp")]


def test_where_the_disk_is_full_training_goes_on_and_the_checkpoint_comes_later(
    tmp_path, english, monkeypatch
):
    save_dir, ballast = tmp_path / "save", tmp_path / "save" / "ballast"
    save_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(save_dir)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not allowed to mount here")
    try:
        ballast.write_bytes(b"x" * 65_500_000)
        options = ("--save-interval-updates", "10", "--ray-max-workers", "1")
        run = ray_train(tmp_path, english, MODEL, *options, "--max-update", "400", pause_s=0.1)
        (first, *_) = run.until(lambda: run.events("unsaved"))
        assert re.search(
            r"checkpoint after update 10, .*tried again: .* MB are free", first["cause"]
        )
        run.until_update(first["update"] + 5)
        assert [] == run.events("checkpoint") and [] == names(save_dir)
        ballast.unlink()
        assert run.until_event("checkpoint")["update"] in (10, 20)
        run.process.terminate()
        assert 143 == run.wait()
        assert "checkpoint_last.pt" in names(save_dir)
        assert 0 == run.redone()
    finally:
        subprocess.run(["umount", str(save_dir)], check=True)
