"""What ranks on GPUs are told before they meet, and who is asked first: the user."""

import os
import types

import pytest
import torch
import torch.distributed as dist
from fairseq.distributed import utils as distributed_utils

from fairseq_ray_plugin.training import collectives

STATES_LIVE = (
    *("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_DUMP_ON_TIMEOUT"),
    *("TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"),
    "TORCH_NCCL_RETHROW_CUDA_ERRORS",
)


@pytest.fixture
def environment(monkeypatch):
    """This process's, without what is in question; as it was afterwards."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in [n for n in os.environ if n.startswith(("NCCL", "TORCH_NCCL", "GLOO"))]:
        del os.environ[name]
    return os.environ


@pytest.fixture
def asked(monkeypatch):
    """Stands in for NCCL, which there is none of here: what the group would be made with."""
    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: asked.update(more))
    monkeypatch.setattr(dist, "TCPStore", lambda *where, **more: dist.HashStore())
    monkeypatch.setattr(distributed_utils.get_global_group, "_global_group", None, raising=False)
    return asked


def join(backend, interface):
    distributed = types.SimpleNamespace(distributed_backend=backend)
    assignment = types.SimpleNamespace(
        master=("127.0.0.1", 1), interface=interface, world_size=2, rank=0, generation=3
    )
    collectives.join(types.SimpleNamespace(distributed_training=distributed), assignment, None)


def test_no_watchdog_of_nccl_ends_a_rank_whose_state_may_be_wanted(environment, asked):
    join("nccl", "eth0")
    assert dict.fromkeys(STATES_LIVE, "0") == {n: environment.get(n) for n in STATES_LIVE}
    assert ("=eth0", "eth0") == (
        environment["NCCL_SOCKET_IFNAME"],
        environment["GLOO_SOCKET_IFNAME"],
    )


def test_what_the_user_says_is_left_alone(environment, asked):
    users = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "NCCL_SOCKET_IFNAME": "ib",
        "GLOO_SOCKET_IFNAME": "ib0",
    }
    environment.update(users)
    join("nccl", "eth0")
    assert users == {name: environment[name] for name in users}


def test_on_cpus_nothing_is_said_to_nccl(environment, asked):
    join("gloo", None)
    assert not [name for name in environment if name.startswith(("NCCL", "TORCH_NCCL", "GLOO"))]
    assert asked["device_id"] is None


def test_nccl_meets_at_once_and_no_collective_gives_up_before_the_control_loop(environment, asked):
    join("nccl", None)
    assert torch.device("cuda", 0) == asked["device_id"]
    assert 1800 < asked["timeout"].total_seconds(), "the loop's limit for loading"


def test_there_is_one_group_for_all(environment, monkeypatch):
    monkeypatch.setattr(distributed_utils.get_global_group, "_global_group", None, raising=False)
    distributed = types.SimpleNamespace(distributed_backend="gloo")
    assignment = types.SimpleNamespace(
        master=("127.0.0.1", 0), interface="lo", world_size=1, rank=0, generation=1
    )
    collectives.join(types.SimpleNamespace(distributed_training=distributed), assignment, None)
    try:
        assert dist.group.WORLD is distributed_utils.get_data_parallel_group()
        assert 0 == dist.get_global_rank(distributed_utils.get_data_parallel_group(), 0)
    finally:
        dist.destroy_process_group()
