"""A network that fails between nodes, and no one is told: training goes on, and grows back."""

import signal
import subprocess
import sys

import data
import pytest
from runs import ray_train
from test_recovery import check_nothing_left, check_samples


def listens_on(pid, host):
    """The addresses of a process's listening sockets, as its host shows them."""
    code = (
        f"import psutil; connections = psutil.Process({pid}).net_connections(); "
        "print(*{c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN})"
    )
    with host.inside():
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return set(output.stdout.split())


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.storm), 1])
def test_a_host_that_is_cut_off_is_done_without_and_taken_back(
    rank, tmp_path, english, hosts, two_hosts
):
    run = ray_train(
        tmp_path,
        english,
        data.MASKED_LM,
        *("--fix-batch-size", "8", "--max-epoch", "1", "--disable-validation"),
        address=two_hosts.address,
        pause_s=0.4,  # or the epoch ends before the host is back, and has lasted
    )
    run.until_update(10)
    for there in run.ranks():
        address = two_hosts.of(there["node"]).node_ip_address
        assert {address} == listens_on(there["pid"], *(h for h in hosts if h.address == address))
    cut_off = two_hosts.of(run.ranks()[rank]["node"])
    (host,) = (host for host in hosts if host.address == cut_off.node_ip_address)
    host.cut()
    alone = run.until(lambda: [e for e in run.events("advanced") if e["generation"] == 2])
    assert 1 == alone[0]["world_size"]
    host.mend()
    again = run.until(lambda: [e for e in run.events("advanced") if e["generation"] == 3])
    assert 2 == again[0]["world_size"]
    run.process.send_signal(signal.SIGTERM)
    assert 143 == run.wait()
    lost, resized, _ = run.events("stopped")
    assert lost["cause"].startswith(f"LOST: rank {rank}") and resized["cause"] == "RESIZED"
    # the same node, not a new one in its place
    assert cut_off.node_id in {rank["node"] for rank in run.ranks()}
    assert 0 == run.redone()
    check_samples(run, run.events("interrupted")[0]["update"])
    check_nothing_left(run)
