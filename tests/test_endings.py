"""However a run ends, what its ranks held is saved first, and bookkeeping ends none."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import data
import pytest
import torch
from runs import TESTS, ray_train, residences

from fairseq_ray_plugin.checkpoints import claim, claim_places

FIXED = (*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation")


def saved_update(run):
    """The update after which the last checkpoint is."""
    state = torch.load(run.save_dir / "checkpoint_last.pt", weights_only=False)
    return state["optimizer_history"][-1]["num_updates"]


def replay(recording):
    """What the loop decides on a recorded run today, as alike as ever, for people."""
    command = [sys.executable, "-m", "fairseq_ray_plugin", "replay", recording]
    process = subprocess.run(command, capture_output=True, text=True)
    assert 0 == process.returncode, process.stdout[-2000:] + process.stderr
    return process.stdout


def test_where_no_disk_has_room_for_a_snapshot_training_goes_on_and_failures_cost_no_more(
    tmp_path, english
):
    """Which is so on a node whose /dev/shm and temporary folder are full."""
    small = tmp_path / "small"
    small.mkdir()
    mounts = f"mount -t tmpfs -o size=64k none /dev/shm && mount -t tmpfs -o size=64k none {small}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounts], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "40", "--ray-snapshot-updates", "5", "--ray-max-workers", "1"),
        faults=[{"rank": 0, "update": 22, "where": "forward", "what": "raise"}],
        under=("unshare", "-m", "sh", "-c", f'{mounts} && TMPDIR={small} exec "$@"', "sh"),
    ).finish()
    assert 0 == run.redone()
    assert {21} <= {event["update"] for event in run.events("checkpoint")}
    (first, *_) = run.events("unsaved")
    assert "no snapshot after update 5" in first["cause"]
    assert 3 >= len(run.events("unsaved")), "it is said, and not again and again"


def test_a_run_that_is_given_up_saves_what_is_held_and_can_be_replayed(
    tmp_path, english, monkeypatch
):
    monkeypatch.setenv("FAIRSEQ_RAY_RECORD", str(tmp_path / "recording"))
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "40", "--ray-max-workers", "1"),
        faults=[{"rank": 0, "update": 21, "where": "begin", "what": "raise", "always": True}],
    )
    assert 1 == run.wait()
    assert "ValueError: the model is broken at update 21" in run.output
    assert run.output.endswith("checkpoint_last.pt is the state after update 20")
    assert 20 == saved_update(run)
    output = replay(tmp_path / "recording")
    assert output.endswith(" 0 times it was decided otherwise\n")
    assert "> stopped: FAILED: rank 0" in output and "> failed: training failed 2 times" in output


def test_a_run_whose_save_dir_was_taken_over_writes_nothing_over_the_other_runs(tmp_path, english):
    """As after a minute for which its machine was cut off from a shared file system."""
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "9", "--ray-max-workers", "1", "--save-interval-updates", "2"),
        pause_s=0.1,
    )
    run.until(lambda: run.events("checkpoint"))
    there = claim_places.place_of(str(run.save_dir))
    other = dataclasses.replace(claim.this_process(), host="host-b", machine="another")
    there.create("2.json", json.dumps(dataclasses.asdict(other)).encode())
    begin = time.time()
    assert 1 == run.wait()
    assert time.time() - begin < 15
    (*_, last) = [line for line in run.lines if "fairseq_ray_plugin" in line]
    assert "was taken over by" in last
    for path in run.save_dir.glob("*.pt*"):
        assert path.stat().st_mtime < begin + 0.5, "one that was being written"
    assert max(step["time"] for step in run.steps()) < begin + 10
    assert ["2.json"] == sorted(set(there.names()) - {"1.json"})


def test_a_save_dir_that_hangs_keeps_no_run_from_ending(tmp_path, english):
    run = ray_train(
        tmp_path, english, FIXED, *("--max-epoch", "9", "--ray-max-workers", "1"), pause_s=0.1
    )
    run.until_update(5)
    journal = run.save_dir / "elastic.jsonl"
    journal.unlink()
    os.mkfifo(journal)  # to open it waits for a reader, who never comes
    begin = time.monotonic()
    os.kill(run.process.pid, signal.SIGTERM)
    run.until(lambda: "stopped: INTERRUPTED" in run.output)
    assert time.monotonic() - begin < 2
    assert 128 + signal.SIGTERM == run.wait()
    assert "could not be written in time" in run.output
    assert saved_update(run) == max(step["update"] for step in run.steps())


def test_a_defect_of_the_loop_itself_costs_no_update_and_can_be_replayed(tmp_path, english):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "9", "--ray-max-workers", "1", "--user-dir", TESTS / "defective"),
    )
    assert 70 == run.wait()
    assert 1 == run.output.count("\nZeroDivisionError"), "its traceback, once"
    assert saved_update(run) >= 10
    output = replay(run.save_dir / "elastic_defect.pickle")
    assert "Advanced(update=" in output


def test_sigterm_to_every_process_of_a_run_lets_the_driver_save_first(tmp_path, english, two_nodes):
    """As Slurm sends it to a step that is to end; Ray's own daemons are another step's here."""
    run = ray_train(
        tmp_path, english, FIXED, "--max-epoch", "9", address=two_nodes.address, pause_s=0.1
    )
    run.until_update(5)
    workers = [
        process
        for node in two_nodes.nodes
        for process in two_nodes.processes(node)
        if "RayDistributedActor" in " ".join(process.cmdline())
    ]
    assert 2 == len(workers)
    for process in [p for w in workers for p in (w, *w.children(recursive=True))]:
        process.terminate()
    run.process.terminate()
    assert 128 + signal.SIGTERM == run.wait()
    assert saved_update(run) == max(step["update"] for step in run.steps())


def test_when_rays_head_dies_the_state_is_saved_and_the_last_word_is_that_it_died(
    tmp_path, english
):
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        run = ray_train(
            tmp_path, english, FIXED, "--max-epoch", "9", address=cluster.address, pause_s=0.1
        )
        run.until_update(5)
        (server,) = cluster.head_node.all_processes["gcs_server"]
        server.process.kill()
        assert 1 == run.wait()
    finally:
        cluster.shutdown()
    (*_, last) = [line for line in run.lines if "fairseq_ray_plugin" in line]
    assert "Ray's head has not answered for 20 s" in last
    assert "checkpoint_last.pt is the state after update" in last
    assert saved_update(run) == max(step["update"] for step in run.steps())


def test_a_loop_that_stood_still_accuses_nobody(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "60", "--ray-hang-timeout", "5"),
        address=two_nodes.address,
        pause_s=0.2,
    )
    run.until_update(5)
    (loop,) = residences(two_nodes.address)
    loop.suspend()
    last = run.steps()[-1]["update"]
    run.until_update(last + 40)  # 8 s, in which nobody is heard of
    loop.resume()
    run.finish()
    assert [] == run.events("stopped")
