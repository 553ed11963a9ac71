"""Ray's head dies: with storage for a while, without for good."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import runs

from disasters import training

AWAY_S = 10
TIMES = 5


@contextlib.contextmanager
def _with_storage(folder: Path) -> Iterator:
    """A head that keeps what it knows in a folder, and two nodes."""
    from ray.cluster_utils import Cluster

    settings = {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(folder / "storage"),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    }
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    os.environ.update(settings)
    there = None
    try:
        arguments = {"num_cpus": 0, "include_dashboard": False, "gcs_server_port": port}
        there = Cluster(initialize_head=True, head_node_args=arguments)
        there.head_arguments = arguments
        there.add_node(num_cpus=1)
        there.add_node(num_cpus=1)
        yield there
    finally:
        for name in settings:
            del os.environ[name]
        if there is not None:
            with contextlib.suppress(Exception):
                there.shutdown()


def with_storage(folder: Path, text: Path, expected: dict) -> dict:
    """The head's server alone: the loop lives."""
    during = 0
    with _with_storage(folder) as there:
        run = training.start(folder, text, there.address, training.MOST_UPDATES, pause_s=0.1)
        training.until_update(run, 10)
        for _ in range(TIMES):
            there.head_node.kill_gcs_server()
            gone, before = time.monotonic(), training.updates(run)
            training.until(run, lambda: time.monotonic() > gone + AWAY_S)  # noqa: B023
            during += training.updates(run) - before
            there.head_node.start_gcs_server()
            back = training.updates(run)
            training.until(run, lambda: training.updates(run) > back + 20)  # noqa: B023
        training.end(run)
        assert len(run.events("started")) == 1
        said = f"training went on: {during} updates while it was away for {AWAY_S} s each time"
        return training.compare(run, expected) | {"times": TIMES, "kept": TIMES, "what": said}


def machine_with_storage(folder: Path, text: Path, expected: dict) -> dict:
    """All that runs on the head's machine dies: the loop, too, and the command.

    Once: the loop that takes over may live on any node, and another death need not be its own.
    """
    with _with_storage(folder) as there:
        run = training.start(folder, text, there.address, training.MOST_UPDATES, pause_s=0.1)
        training.until_update(run, 10)
        there.remove_node(there.head_node, allow_graceful=False)
        run.process.kill()
        before = training.updates(run)
        time.sleep(AWAY_S)
        during = training.updates(run) - before
        there.add_node(**there.head_arguments)
        attach = ("--ray-attach", run.save_dir, "--ray-address", there.address)
        run = runs.Run(folder, [runs.BIN / "fairseq-ray-train", *attach])
        training.until_event(run, "taken over")
        training.until_both_train(run, after=run.events("taken over")[-1]["generation"])
        training.end(run)
        said = (
            f"training went on: {during} updates while it was away for {AWAY_S} s; another loop "
            "took the ranks over"
        )
        return training.compare(run, expected) | {"times": 1, "kept": 1, "what": said}


def without_storage(folder: Path, text: Path, expected: dict) -> dict:
    """The head's server, for good: what is held is saved, and the same command goes on."""
    with faults.cluster() as nodes:
        run = training.start(folder, text, nodes.address, training.MOST_UPDATES, pause_s=0.1)
        training.until_update(run, 10)
        nodes.cluster.head_node.kill_gcs_server()
        assert run.wait(training.LIMIT_S) == 1, run.tail()
        newest, last = training.newest(run.save_dir), training.updates(run)
        assert newest == last, f"{last} updates, and {newest} are saved"
    with faults.cluster() as nodes:
        run = training.start(folder, text, nodes.address, last + 20, pause_s=0.1)
        training.finish(run)
    said = f"saved after update {last}, where it was; the same command went on in another Ray"
    return training.compare(run, expected) | {"times": 1, "kept": 1, "what": said}


def machine_without_storage(folder: Path, text: Path, expected: dict) -> dict:
    """The head's machine for good, with the loop and the command on it."""
    with faults.cluster() as nodes:
        run = training.start(folder, text, nodes.address, training.MOST_UPDATES, pause_s=0.3)
        training.until_update(run, 15)
        nodes.cluster.remove_node(nodes.cluster.head_node, allow_graceful=False)
        run.process.kill()
        last, begin = -1, time.monotonic()
        while last < training.updates(run) or time.monotonic() < begin + 60:
            last = training.updates(run)
            time.sleep(10)
        newest = training.newest(run.save_dir)
        assert newest == last, f"{last} updates, and {newest} are saved"
    with faults.cluster() as nodes:
        run = training.start(folder, text, nodes.address, last + 20, pause_s=0.1)
        training.finish(run)
    said = f"saved after update {last}, where it was; the same command went on in another Ray"
    return training.compare(run, expected) | {"times": 1, "kept": 1, "what": said}
