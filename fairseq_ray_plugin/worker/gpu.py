"""Which GPU a worker has: by its UUID, which stays its own whoever numbers the GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Mapping

COMMAND = ("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")

LIMIT_S = 20.0
"""A driver that starts with the question takes seconds; one that hangs is done without."""


async def uuid_of(device: str, environment: Mapping[str, str]) -> str:
    """The UUID of the GPU that Ray has handed out; empty where there is none, or it is not known.

    CUDA itself is not asked: it would begin in this process, or fail where the GPU is broken.

    Args:
        device: its number, or already a UUID (of a GPU or a MIG slice); empty: there is none.
        environment: that of ranks.
    """
    if not device.isdecimal():
        return device if device.startswith(("GPU-", "MIG-")) else ""
    try:
        query = await asyncio.create_subprocess_exec(
            *COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        output, _ = await asyncio.wait_for(query.communicate(), LIMIT_S)
    except asyncio.TimeoutError:
        query.kill()
        with contextlib.suppress(asyncio.TimeoutError):  # it may hang in the driver
            await asyncio.wait_for(query.wait(), 1)
        return ""
    return find(output.decode(errors="replace"), device, environment.get("CUDA_DEVICE_ORDER", ""))


def find(table: str, device: str, order: str) -> str:
    """The UUID in nvidia-smi's table; empty where the numbers there may not be CUDA's.

    Args:
        order: CUDA_DEVICE_ORDER; without it CUDA numbers the fastest first, where they differ.
    """
    rows = [tuple(part.strip() for part in line.split(",", 2)) for line in table.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if order != "PCI_BUS_ID" and len({name for _, _, name in rows}) > 1:
        return ""
    return next((uuid for index, uuid, _ in rows if index == device), "")
