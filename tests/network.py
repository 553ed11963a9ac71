"""Hosts of their own on this machine: network namespaces, wired to it through a bridge.

Needs root. What runs in a host has the host's address and its own loopback; a cut host neither
sends nor receives, and no one is told: no connection is reset.
"""

import contextlib
import ctypes
import subprocess
import uuid

CLONE_NEWNET = 0x40000000
NETWORK = "198.18.{}.{}"
"""Of the addresses kept for tests of networks (RFC 2544)."""


class Host:
    """A network namespace, and its link to the others."""

    def __init__(self, network, number):
        self.name, self.port = f"{network.name}n{number}", f"{network.name}p{number}"
        self.address = NETWORK.format(network.subnet, number)
        ip("netns", "add", self.name)
        network.undo.callback(ip, "netns", "del", self.name)
        ip("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        # not left to the namespace's end: it lives on while a process is in it
        network.undo.callback(ip, "link", "del", self.port)
        ip("link", "set", self.port, "master", network.name, "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        # no way out to anywhere else: a question to a name server fails at once
        ip("-n", self.name, "route", "add", network.home, "via", network.address)

    @contextlib.contextmanager
    def inside(self):
        """Processes that this thread starts meanwhile are of this host."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as here:
            enter(here)
            try:
                yield
            finally:
                enter(home)

    def cut(self):
        ip("link", "set", self.port, "down")

    def mend(self):
        ip("link", "set", self.port, "up")


class Network:
    """Hosts that reach each other and this machine; all gone at the end.

    Args:
        home: this machine's address.
        num_hosts: two, or more.

    Raises:
        OSError, subprocess.CalledProcessError: this machine does not let us.
    """

    def __init__(self, home, num_hosts=2):
        self.home, self.num_hosts = home, num_hosts
        self.name = f"frp{uuid.uuid4().hex[:6]}"
        self.subnet = int(self.name[-2:], 16)  # test runs side by side must not meet
        self.address = NETWORK.format(self.subnet, 1)
        self.hosts = []
        self.undo = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as undo_if_failed:
            undo_if_failed.push(self.undo)
            ip("link", "add", self.name, "type", "bridge")
            self.undo.callback(ip, "link", "del", self.name)
            ip("addr", "add", f"{self.address}/24", "dev", self.name)
            ip("link", "set", self.name, "up")
            self.hosts = [Host(self, number) for number in range(2, 2 + self.num_hosts)]
            undo_if_failed.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter(namespace):
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {namespace.name}")
