"""`ray job stop` gives a command 3 seconds: what is held is saved all the same."""

import contextlib
import shlex
import socket
import sys
import time

import data
import pytest
import torch
from ray.cluster_utils import Cluster
from runs import BIN, RECORDER, Run

pytest.importorskip("aiohttp", reason="Ray's job server needs ray[default]")

FIXED = (*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation")


@pytest.fixture
def job_server(monkeypatch):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": port},
    )
    try:
        cluster.add_node(num_cpus=2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()


@pytest.mark.parametrize(
    ("width", "gigabytes"), [(64, 0), pytest.param(3584, 1.4, id="a state of 1.5 GB")]
)
def test_a_job_that_is_stopped_saves_what_its_ranks_hold(
    width, gigabytes, tmp_path, english, job_server
):
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(job_server)
    save_dir = tmp_path / "save"
    command = [
        *(BIN / "fairseq-ray-train", english, *FIXED, "--save-dir", save_dir),
        *("--user-dir", RECORDER, "--max-epoch", "9", "--encoder-embed-dim", width),
        *("--batch-size", "1", "--fix-batch-size", "2"),
    ]
    environment = data.environment() | {"FAIRSEQ_RECORD": str(tmp_path / "records")}
    job = client.submit_job(
        entrypoint=shlex.join(map(str, command)), runtime_env={"env_vars": environment}
    )
    # only for its ways to read what a run has written
    run = Run(tmp_path, [sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        run.until_update(3)
        begin = time.monotonic()
        client.stop_job(job)
        run.until_event("interrupted")
        print(f"saved {time.monotonic() - begin:.1f} s after the stop")
        assert client.get_job_status(job) in (JobStatus.STOPPED, JobStatus.RUNNING)
    finally:
        run.process.kill()
    path = save_dir / "checkpoint_last.pt"
    assert path.stat().st_size > gigabytes * 1e9
    state = torch.load(path, weights_only=False)
    last = max(step["update"] for step in run.steps())
    assert last == state["optimizer_history"][-1]["num_updates"]
