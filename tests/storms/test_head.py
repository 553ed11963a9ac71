"""Ray's head dies for a minute and comes back with what it knew: training goes on meanwhile."""

import contextlib
import os
import socket
import time

import data
import pytest
from ray.cluster_utils import Cluster
from runs import BIN, Run, ray_train

FIXED = (*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation")
AWAY_S = 60


@pytest.fixture
def head_with_storage(tmp_path, monkeypatch):
    """A head that keeps what it knows in a folder, and two nodes."""
    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "storage"))
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    arguments = {"num_cpus": 0, "include_dashboard": False, "gcs_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    cluster.head_arguments = arguments
    try:
        cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()


def test_ranks_and_loop_live_through_the_death_of_the_heads_server(
    tmp_path, english, head_with_storage
):
    """The loop's node lives, and so does the loop; the head is away for a minute."""
    cluster = head_with_storage
    options = ("--max-epoch", "2")
    run = ray_train(
        tmp_path / "run", english, FIXED, *options, address=cluster.address, pause_s=0.2
    )
    run.until_update(10)
    cluster.head_node.kill_gcs_server()
    gone = time.monotonic()
    before = run.steps()[-1]["update"]
    run.until(lambda: time.monotonic() > gone + AWAY_S)
    during = run.steps()[-1]["update"]
    assert during > before + AWAY_S, "training went on"
    cluster.head_node.start_gcs_server()
    run.until_update(during + 20)
    rank = run.ranks()[1]["pid"]
    os.kill(rank, 9)  # and all is as before
    run.until_event("stopped")
    run.finish()
    assert 1 == len(run.events("stopped")) and 0 == run.redone()
    assert [] == run.events("taken over")


def test_ranks_live_through_the_death_of_the_heads_node_and_the_loop_takes_over(
    tmp_path, english, head_with_storage
):
    """All that runs on the head's machine dies: the loop, too, and the command."""
    cluster = head_with_storage
    options = ("--max-epoch", "2")
    run = ray_train(
        tmp_path / "run", english, FIXED, *options, address=cluster.address, pause_s=0.2
    )
    run.until_update(10)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    gone = time.monotonic()
    before = run.steps()[-1]["update"]
    run.process.kill()
    time.sleep(AWAY_S)
    during = run.steps()[-1]["update"]
    assert during > before + AWAY_S, "training went on"
    cluster.add_node(**cluster.head_arguments)
    command = (BIN / "fairseq-ray-train", "--ray-attach", run.save_dir)
    late = Run(tmp_path / "late", [*command, "--ray-address", cluster.address])
    run.process = late.process
    run.until_event("taken over")
    run.finish()
    assert 0 == run.redone()
    assert gone
