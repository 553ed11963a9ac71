"""A worker that nobody asks anything: its loop is gone, and perhaps Ray's head as well.

What its rank holds is saved while there is time, for without a head Ray ends its nodes after a
minute. A loop that comes after all finds the rank at rest. If none comes the worker ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from fairseq_ray_plugin.checkpoints import manifests
from fairseq_ray_plugin.protocol import Hold

if TYPE_CHECKING:
    from fairseq_ray_plugin.worker.worker import Worker

logger = logging.getLogger(__name__)

TURN_S = 8.0
"""So long rank 0's node has alone to save; then all others try."""

END_LIMIT_S = 10.0
"""How long a worker takes, at most, that ends itself."""


class Forsaken:
    """Counts the seconds in which nobody has asked.

    Args:
        save_after_s: after so many what the rank holds is saved.
        end_after_s: after so many the worker ends; nobody else ends an actor that outlives its
            maker, and it may hold a GPU.
    """

    def __init__(self, worker: Worker, save_after_s: float, end_after_s: float) -> None:
        self._worker, self._save_after_s, self._end_after_s = worker, save_after_s, end_after_s
        self._unasked_s = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        threading.Thread(target=self._count, daemon=True).start()

    def is_asked(self) -> None:
        """Somebody has asked the worker, whose event loop this is called in."""
        self._unasked_s, self._loop = 0, asyncio.get_running_loop()

    def _count(self) -> None:
        while self._unasked_s < self._end_after_s:
            time.sleep(1)
            self._unasked_s += 1  # not by a clock: time in which this stood still does not count
            is_time = self._unasked_s - 1 < self._save_after_s <= self._unasked_s
            if is_time and self._loop is not None:
                asyncio.run_coroutine_threadsafe(save(self._worker), self._loop)
        if self._loop is not None:
            with contextlib.suppress(Exception):
                stop = asyncio.run_coroutine_threadsafe(self._worker.stop(), self._loop)
                stop.result(END_LIMIT_S)
        os._exit(0)


async def save(worker: Worker) -> None:
    """What the rank holds becomes the run's last checkpoint, unless another has done that."""
    if worker.link is None:
        return
    logger.warning("nobody asks for this worker: what its rank holds is saved")
    path = worker.job.last_checkpoint
    before = await asyncio.to_thread(_newest, path)
    await worker.tell(Hold(worker.generation, at_once=True))
    if worker.rank > 0:
        await asyncio.sleep(TURN_S)
        now = await asyncio.to_thread(_newest, path)
        if now != before and now >= worker.messages.update:
            return
    worker.publish_held()


def _newest(path: str) -> int:
    """The update after which the checkpoint at a path is; -1: none is to be seen there."""
    with contextlib.suppress(OSError):
        if manifest := manifests.read(path):
            return manifest.facts.updates
    return -1
