"""Where the ranks of a generation meet: reachable by them, and by as few others as can be."""

from __future__ import annotations

import socket

import psutil

LOOPBACK = "127.0.0.1"
"""Where the ranks of one node meet, which no other node need reach."""


def listen(host: str) -> socket.socket:
    """A listening socket at an address of this node, on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family)
    except OSError:  # an address that a router gave the node, which knows itself by another
        return socket.create_server(("", 0), family=family)


class Door:
    """A listening socket that is kept open for rank 0's process to take over."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None

    def open(self, host: str) -> int:
        """Another one, at an address of this node; returns its port."""
        if self.listener is not None:
            self.listener.close()
        self.listener = listen(host)
        return int(self.listener.getsockname()[1])

    def take(self) -> socket.socket | None:
        listener, self.listener = self.listener, None
        return listener


def interface(master: str, node_ip: str) -> str | None:
    """The network interface for gloo and NCCL; None: as they find one themselves.

    gloo would take that of this machine's own name, which many systems say is 127.0.1.1.

    Args:
        master: the address at which the ranks meet.
        node_ip: the address at which other nodes reach this one.
    """
    wanted = LOOPBACK if master == LOOPBACK else node_ip
    for name, addresses in psutil.net_if_addrs().items():
        if wanted in (address.address for address in addresses):
            return str(name)
    return None
