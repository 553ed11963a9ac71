"""The process group of a generation."""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

import torch.distributed as dist

from fairseq_ray_plugin.assignment import Assignment

JOIN_LIMIT = datetime.timedelta(seconds=60)
"""How long the ranks of a generation wait for each other at its start."""


def join(cfg: Any, assignment: Assignment, listener: int | None) -> None:
    """Form the process group, over a store that is this generation's alone."""
    host, port = assignment.master
    if assignment.interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = assignment.interface
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
        cfg.distributed_training.distributed_backend,
        store=dist.PrefixStore(str(assignment.generation), store),
        rank=assignment.rank,
        world_size=assignment.world_size,
    )
