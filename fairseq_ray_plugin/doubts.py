"""Whether a node is dead for sure: nobody listens any more where its Ray daemon did.

Ray itself says that a node is dead after 10 s, and of a broken connection after one; a node that is
not heard of may be cut off, or busy. But where the kernel refuses a connection to the daemon, the
daemon is no more, and all that ran under it with it. As spot instances go, processes end before the
machine does.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fairseq_ray_plugin.surveyor import Address

DOUBT_S = 1.5
"""A node that is silent for so long is done without, dead or not."""

KNOCK_S = 0.05
"""Between two tries."""

AT_ONCE = 16
"""Nodes that are tried at the same time; one that is cut off takes all of its time."""


class Doubts:
    """Nodes whose ranks have yet to answer: whether their daemons are there is tried.

    Args:
        on_dead: called in a thread with each node that is dead.
    """

    def __init__(self, on_dead: Callable[[str], object]) -> None:
        self._on_dead = on_dead
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def begin(self, node: str, daemon: Address) -> None:
        """A rank there is to answer."""
        with self._lock:
            is_new = node not in self._until
            self._until[node] = time.monotonic() + DOUBT_S
        if is_new:
            self._threads.submit(self._try, node, daemon)

    def end(self, node: str) -> None:
        """It has answered."""
        with self._lock:
            self._until.pop(node, None)

    def close(self) -> None:
        """Nothing is tried any more."""
        with self._lock:
            self._until.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _try(self, node: str, daemon: Address) -> None:
        while self._is_doubted(node):
            if is_refused(daemon):
                self.end(node)
                self._on_dead(node)
                return
            time.sleep(KNOCK_S)

    def _is_doubted(self, node: str) -> bool:
        with self._lock:
            if time.monotonic() > self._until.get(node, 0.0):
                self._until.pop(node, None)
            return node in self._until


def is_refused(daemon: Address) -> bool:
    """Whether the machine is there, and nobody listens."""
    try:
        socket.create_connection(daemon, timeout=DOUBT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # which says nothing of the node
    return False
