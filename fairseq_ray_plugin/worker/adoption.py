"""What a worker tells a control loop that takes it over from one that has died."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from fairseq_ray_plugin.assignment import Found

if TYPE_CHECKING:
    from fairseq_ray_plugin.worker.worker import Worker


def found(worker: Worker) -> Found:
    """All that a loop must know of the worker."""
    said, folders = worker.messages, worker.memory.folders
    to_come = worker.standby.generation if worker.standby is not None else 0
    return Found(
        node=worker.get_node_id(),
        is_ready=worker.server.is_ready,
        num_heard=said.num_forgotten,
        newest=max(worker.generation, worker.void, to_come),
        generation=worker.generation,
        rank=worker.rank,
        world_size=worker.world_size,
        is_at_rest=worker.link is None or said.rested == worker.generation,
        update=said.update,
        pid=worker.pid,
        gpu=worker.gpu,
        age_s=time.monotonic() - worker.since,
        snapshots=tuple(
            copy
            for path, copy in said.snapshots.items()
            if os.path.dirname(path) in folders and os.path.exists(path)
        ),
    )
