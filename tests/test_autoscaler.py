"""With an autoscaler, a run gets the nodes it asks for, others for those it loses, and gives them
back.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data
import psutil
import pytest
import ray
from runs import TESTS, ray_train

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


class Autoscaler:
    """A head without room for workers, and Ray's own autoscaler, which may start nodes."""

    def __init__(self, folder):
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        config = Path(folder) / "cluster.yaml"
        config.write_text(json.dumps(cluster(self.address)))
        self.process = subprocess.Popen(
            [
                *(Path(sys.executable).parent / "ray", "start", "--head", "--block"),
                *(f"--port={port}", "--num-cpus=0", "--include-dashboard=false"),
                *("--min-worker-port=0", "--max-worker-port=0"),
                *("--object-store-memory=100000000", f"--autoscaling-config={config}"),
            ],
            env={
                **data.environment(),
                "PYTHONPATH": f"{TESTS}:{data.environment()['PYTHONPATH']}",
                "RAY_TMPDIR": folder,
                # or it wants the token that a local Ray of this user may have left
                "RAY_AUTH_MODE": "disabled",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                # as examples/roberta/lm-cluster.yaml has it
                "RAY_AUTOSCALER_UTILIZATION_SCORER": "fairseq_ray_plugin.aws.preference.score",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until_started(self):
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                return
        raise AssertionError("".join(said))

    def below(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def num_nodes(self):
        """Beside the head."""
        raylets = 0
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):  # it went just now
                if process.name() == "raylet":
                    raylets += process.status() != psutil.STATUS_ZOMBIE
        return raylets - 1

    def end(self):
        below = self.below()
        self.process.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()
        psutil.wait_procs(below, timeout=20)


@pytest.fixture
def autoscaler(ray_folder):
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        autoscaler = Autoscaler(folder)
        try:
            autoscaler.until_started()
            yield autoscaler
        finally:
            autoscaler.end()


def cluster(address):
    """What Ray makes of a file for `ray up`: nothing may be left out."""
    empty = dict.fromkeys(
        [
            *("initialization_commands", "setup_commands", "head_setup_commands"),
            *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
            *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
        ],
        [],
    )
    return empty | {
        "cluster_name": "fake",
        "max_workers": 4,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": "provider.Provider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {
                "resources": {"CPU": 1, "object_store_memory": 100000000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 4,
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{"auth": {}, "docker": {}, "file_mounts": {}},
    }


def test_nodes_are_asked_for_replaced_when_lost_and_given_back(tmp_path, english, autoscaler):
    run = ray_train(
        tmp_path,
        english,
        data.MASKED_LM,
        *("--max-update", "10000", "--disable-validation", "--ray-max-workers", "2"),
        address=autoscaler.address,
        pause_s=0.1,
    )
    run.until(lambda: [e for e in run.events("advanced") if e["world_size"] == 2])
    first = {rank["node"] for rank in run.ranks()}
    raylet = next(
        p for p in psutil.Process(run.ranks()[1]["pid"]).parents() if p.name() == "raylet"
    )
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    run.until(lambda: [e for e in run.events("advanced") if e["world_size"] == 1])
    run.until(lambda: [e for e in run.events("advanced") if e["world_size"] == 2][1:])
    second = {rank["node"] for rank in run.ranks()}
    assert 1 == len(first & second) and 2 == len(second), "one node was lost, and replaced"
    assert 0 == run.redone()
    run.process.send_signal(signal.SIGTERM)
    assert 143 == run.wait()
    end = time.monotonic() + 30
    while autoscaler.num_nodes() and time.monotonic() < end:
        time.sleep(0.1)
    assert 0 == autoscaler.num_nodes(), "nodes are still held for a run that is over"
