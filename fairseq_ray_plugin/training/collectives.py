"""The process group of a generation."""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed import utils as distributed_utils

from fairseq_ray_plugin.assignment import Assignment

JOIN_LIMIT = datetime.timedelta(seconds=60)
"""How long the ranks of a generation wait for each other at its start."""

GROUP_LIMIT = datetime.timedelta(hours=1)
"""No collective gives up before the control loop does, which learns how long is too long: its limit
for loading is 30 min. NCCL's own is 10."""

GPU_SETTINGS = {
    # the watchdog ends a process whose collective failed, and with it a state that is wanted; 1 and
    # 2 abort the kernels, so that training would go on with gradients that were never summed
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # else a collective that takes too long ends the process after a dump, whatever that says
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # and so does the thread that watches the watchdog, after 8 min
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    # how long the watchdog sleeps for other ranks' dumps, with the queue's lock held
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    # an error of CUDA is an exception in training, with a traceback, and not one in the watchdog,
    # which nothing catches
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # who launches into a full queue keeps every other thread out of CUDA until there is room:
    # behind a dead collective for ever, and the state stays where it is
    "CUDA_SCALE_LAUNCH_QUEUES": "4x",
}
"""Environment of ranks on GPUs, unless the user's has them; by the same names in torch 2.4 to 2.13.

Who notices a dead rank is its worker, at once; the others stay as they are, blocked, until their
state is saved.
"""


def join(cfg: Any, assignment: Assignment, listener: int | None) -> None:
    """Form the process group, over a store that is this generation's alone.

    It is fairseq's, too: each other one would be another communicator, with memory of its own on
    the GPU, and to use two at a time is where NCCL can hang.
    """
    host, port = assignment.master
    backend = cfg.distributed_training.distributed_backend
    for name, value in settings(backend, assignment.interface).items():
        os.environ.setdefault(name, value)
    make_store = functools.partial(
        dist.TCPStore,
        host,
        port,
        assignment.world_size,
        is_master=assignment.rank == 0,
        timeout=JOIN_LIMIT,
        wait_for_workers=False,
        master_listen_fd=listener,
    )
    try:
        store = make_store()
    except NotImplementedError:  # torch 2.4 takes no listener with its default back end
        store = make_store(use_libuv=False)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(str(assignment.generation), store),
        rank=assignment.rank,
        world_size=assignment.world_size,
        timeout=GROUP_LIMIT,
        device_id=_device_to_connect(backend),
    )
    distributed_utils.get_global_group._global_group = dist.group.WORLD


def settings(backend: str, interface: str | None) -> dict[str, str]:
    """Environment for the back end; what the user's says comes before it.

    Args:
        interface: the network interface by which other ranks are reached; None: not known.
    """
    chosen = dict(GPU_SETTINGS) if backend == "nccl" else {}
    if interface is not None:
        chosen["GLOO_SOCKET_IFNAME"] = interface
        if backend == "nccl":
            # the whole name, not one that begins so; Ray's interface reaches every node
            chosen["NCCL_SOCKET_IFNAME"] = f"={interface}"
    return chosen


def _device_to_connect(backend: str) -> torch.device | None:
    """NCCL meets here, where all ranks are at the same point; else at the first collective, after
    data and model, when a slow rank would have to be there within the store's time-out."""
    return torch.device("cuda", 0) if backend == "nccl" else None
