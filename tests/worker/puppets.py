"""A worker's server as it is, but it imports nothing, and its ranks do what a test says.

The server is this file. A `Puppet` is the test's hand on one of its processes.
"""

import functools
import os
import pickle
import signal
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fairseq_ray_plugin.assignment import Preload
from fairseq_ray_plugin.worker import forkserver

PROGRAM = str(Path(__file__))

WAIT_S = 10
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

    def next(self):
        """The next process that has come up."""
        self._all.append(Puppet(self._listener.accept()))
        return self._all[-1]

    def close(self):
        self._listener.close()
        self._all.clear()


def make_ready(preload: Preload, say_imported) -> forkserver.Run:
    what, address = pickle.loads(preload.cfg)
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
