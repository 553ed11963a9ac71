"""A worker's server as it is, but it imports nothing, and its ranks do what a test says.

The server is this file. A `Puppet` is the test's hand on one of its processes.
"""

import functools
import os
import pickle
import signal
from multiprocessing.connection import Client, Connection, Listener, Pipe
from pathlib import Path

from fairseq_ray_plugin.assignment import Preload
from fairseq_ray_plugin.worker import family, forkserver

PROGRAM = str(Path(__file__))

WAIT_S = 30
"""A test fails that waits longer for what it expects."""


class Puppet:
    """A rank, or a server that imports, moved by a test."""

    def __init__(self, strings):
        self._strings = strings
        self.pid, self.task, self.listener = strings.recv()

    @property
    def assignment(self):
        return self.task

    def say(self, *messages):
        """Its worker hears the messages."""
        for message in messages:
            self._strings.send(("say", message))

    def hear(self):
        """The next order that the worker has for it."""
        self._strings.send(("hear", None))
        assert self._strings.poll(WAIT_S), "no order arrives"
        return self._strings.recv()

    def exit(self, code):
        self._strings.send(("exit", code))

    def fail(self):
        """Its code raises."""
        self._strings.send(("fail", None))

    def cut(self):
        """Its code raises EOFError, as after half a file."""
        self._strings.close()

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def is_alive(self):
        """Whether it does what it is told."""
        try:
            self._strings.send(("answer", None))
            return self._strings.poll(WAIT_S) and self._strings.recv()
        except (OSError, EOFError):
            return False

    def ends_a_child(self):
        """How a child of its own ends that it terminates: a wait status."""
        self._strings.send(("end a child", None))
        assert self._strings.poll(WAIT_S), "the child lives"
        return self._strings.recv()

    def starts(self, kind):
        """The pid of a process that ignores SIGTERM: one of `STARTS`."""
        self._strings.send(("start", kind))
        assert self._strings.poll(WAIT_S), "it does not start"
        return self._strings.recv()

    def grows(self, size):
        """It takes so many bytes, and a while to give them back."""
        self._strings.send(("grow", size))
        assert self._strings.poll(WAIT_S) and self._strings.recv()

    def wait(self):
        """Its process is no more."""
        assert self._strings.poll(WAIT_S), "it lives"
        try:
            unread = self._strings.recv()
        except (OSError, EOFError):
            return
        raise AssertionError(unread)


class Puppets:
    """Where the puppets of a test come from."""

    def __init__(self):
        self._listener = Listener(family="AF_UNIX")
        self._all = []  # a puppet whose strings are cut raises EOFError
        address = self._listener.address
        self.ranks = pickle.dumps(("ranks", address))
        """What a server is to preload that is ready at once."""

        self.imports = pickle.dumps(("imports", address))
        """What a server is to preload that is a puppet itself, and never ready."""

        self.unkillable = pickle.dumps(("unkillable", address))
        """What a server is to preload that cannot kill anybody, as if all hung in the kernel."""

    def next(self):
        """The next process that has come up."""
        self._all.append(Puppet(self._listener.accept()))
        return self._all[-1]

    def close(self):
        self._listener.close()
        self._all.clear()


def forbid_to_kill() -> None:
    """In this process: whoever is to be killed is not, as if it hung in the kernel."""
    family.end_group = family._kill = lambda pid: None
    forkserver.KILL_LIMIT_S = forkserver.END_LIMIT_S = 0.1


def stubborn(ready: Connection) -> None:
    """What a process does that nobody should wait for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send(os.getpid())
    while True:
        signal.pause()


def fork_helper(ready: Connection) -> None:
    if os.fork() == 0:
        stubborn(ready)


def fork_session(ready: Connection) -> None:
    """One that leaves the group."""
    if os.fork() == 0:
        os.setsid()
        stubborn(ready)


def fork_daemon(ready: Connection) -> None:
    """One that leaves the group, and whose parent ends at once."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stubborn(ready)
        os._exit(0)


class Endless:
    """Data of which the first example never comes."""

    def __init__(self, ready: Connection) -> None:
        self._ready = ready

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        stubborn(self._ready)


def start_loader(ready: Connection) -> None:
    from torch.utils.data import DataLoader

    loaders.append(iter(DataLoader(Endless(ready), num_workers=1)))


loaders: list = []

STARTS = {
    "helper": fork_helper,
    "session": fork_session,
    "daemon": fork_daemon,
    "loader": start_loader,
}


def make_ready(preload: Preload, say_imported) -> forkserver.Run:
    what, address = pickle.loads(preload.cfg)
    if what == "unkillable":
        forbid_to_kill()
    if what == "imports":
        obey(address)
    return functools.partial(obey, address)


def obey(
    address: str,
    task: forkserver.Task | None = None,
    link: Connection | None = None,
    listener: int | None = None,
) -> None:
    with Client(address) as strings:
        strings.send((os.getpid(), task, listener))
        while True:
            match strings.recv():
                case "say", message:
                    link.send(message)
                case "hear", _:
                    strings.send(link.recv())
                case "exit", code:
                    os._exit(code)
                case "fail", _:
                    raise RuntimeError("as it was told")
                case "answer", _:
                    strings.send(True)
                case "grow", size:
                    memory = b"x" * size
                    strings.send(len(memory) == size)
                case "start", kind:
                    ready, end = Pipe()
                    STARTS[kind](end)
                    strings.send(ready.recv())
                case "end a child", _:
                    reading, writing = os.pipe()
                    if (child := os.fork()) == 0:
                        os.write(writing, b"here")
                    while child == 0:
                        signal.pause()
                    os.read(reading, 4)
                    os.kill(child, signal.SIGTERM)
                    strings.send(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    forkserver.main(make_ready)
