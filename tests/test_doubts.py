"""A node is dead for sure where its Ray daemon's port refuses, and only there."""

import queue
import socket

import pytest

from fairseq_ray_plugin import doubts
from fairseq_ray_plugin.doubts import Doubts


@pytest.fixture
def dead():
    return queue.SimpleQueue()


@pytest.fixture
def ours(dead):
    ours = Doubts(dead.put)
    yield ours
    ours.close()


@pytest.fixture
def daemon():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_daemon_that_is_gone_is_noticed_at_once(ours, dead, daemon):
    address = daemon.getsockname()
    daemon.close()
    ours.begin("a", address)
    assert "a" == dead.get(timeout=doubts.DOUBT_S)


def test_a_daemon_that_goes_while_its_node_is_doubted_is_noticed(ours, dead, daemon):
    ours.begin("a", daemon.getsockname())
    daemon.accept()[0].close()
    daemon.accept()[0].close()  # again and again
    daemon.close()
    assert "a" == dead.get(timeout=doubts.DOUBT_S)


def test_of_one_that_listens_nothing_is_said_and_it_is_asked_no_more_after_a_while(
    ours, dead, daemon, monkeypatch
):
    monkeypatch.setattr(doubts, "DOUBT_S", 0.2)
    ours.begin("a", daemon.getsockname())
    daemon.settimeout(0.5)
    with pytest.raises(TimeoutError):
        while True:
            daemon.accept()[0].close()
    assert dead.empty()
    ours.begin("a", daemon.getsockname())
    daemon.accept()[0].close()


def test_who_has_answered_is_not_doubted(ours, dead, daemon):
    ours.begin("a", daemon.getsockname())
    daemon.accept()[0].close()
    ours.end("a")
    daemon.settimeout(4 * doubts.KNOCK_S)
    with pytest.raises(TimeoutError):
        for _ in range(3):  # one may be under way
            daemon.accept()[0].close()
    daemon.close()
    with pytest.raises(queue.Empty):
        dead.get(timeout=4 * doubts.KNOCK_S)


def test_one_that_cannot_be_reached_may_be_there(ours, dead, monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    assert not doubts.is_refused(("10.255.255.1", 1))
