"""The server forks ranks, ends them, and says what became of them; it ends with its worker."""

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Pipe
from multiprocessing.reduction import send_handle

import psutil
import puppets
import pytest

from fairseq_ray_plugin.assignment import Assignment, Exited, Fork, Forked, Kill, Preload
from fairseq_ray_plugin.protocol import Ready, Unfit
from fairseq_ray_plugin.worker import evidence

pytestmark = pytest.mark.timeout(60)


class Server:
    """A server, as a worker sees it, in a process group of its own."""

    def __init__(self, script):
        self.connection, end = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, puppets.PROGRAM, str(end.fileno()), ""],
            pass_fds=[end.fileno()],
            start_new_session=True,
        )
        end.close()
        self.connection.send(Preload(cfg=script, working_dir="", python_path=(), user_dir=None))

    def hear(self):
        assert self.connection.poll(puppets.WAIT_S), "it says nothing"
        return self.connection.recv()

    def fork(self, listener=None):
        """Returns the worker's end of the link."""
        link, end = Pipe()
        self.connection.send(Fork(assignment(), listener is not None))
        send_handle(self.connection, end.fileno(), None)
        end.close()
        if listener is not None:
            send_handle(self.connection, listener.fileno(), None)
        return link


def assignment():
    return Assignment(
        generation=1,
        rank=0,
        world_size=1,
        restore=None,
        keeps_snapshots=False,
        master=("127.0.0.1", 0),
        groups=None,
        restart_epoch=False,
        threads=1,
        user_dir=None,
        snapshot_folders=(),
        snapshot_updates=None,
    )


@pytest.fixture
def server(ranks):
    server = Server(ranks.ranks)
    assert Ready() == server.hear()
    yield server
    server.connection.close()
    server.process.kill()
    server.process.wait()


def start(server, ranks):
    link = server.fork()
    rank = ranks.next()
    assert Forked(1, rank.pid) == server.hear()
    return rank, link


def test_a_rank_is_a_child_of_the_server_and_speaks_with_the_worker(server, ranks):
    rank, link = start(server, ranks)
    assert server.process.pid == psutil.Process(rank.pid).ppid()
    assert assignment() == rank.assignment
    rank.say("hello")
    assert "hello" == link.recv()
    link.send("and you")
    assert "and you" == rank.hear()


def test_rank_0_gets_the_socket_where_all_ranks_meet(server, ranks):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        server.fork(listener)
        rank = ranks.next()
    assert rank.listener is not None
    socket.create_connection(address, timeout=10).close()  # ours is closed, the rank's is open


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (("exit", 3), "exited with code 3"),
        (("fail",), "exited with code 1"),
        (("kill", signal.SIGSEGV), "was killed by SIGSEGV"),
        (("kill", signal.SIGKILL), "was killed by SIGKILL"),
        (("kill", signal.SIGRTMIN + 3), f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_the_end_of_a_rank_is_said_with_its_reason_and_another_can_follow(end, how, server, ranks):
    rank, _ = start(server, ranks)
    getattr(rank, end[0])(*end[1:])
    assert Exited(rank.pid, how, crashed="SEGV" in how) == server.hear()
    start(server, ranks)


def test_a_rank_that_does_not_answer_can_be_killed(server, ranks):
    rank, _ = start(server, ranks)
    rank.kill(signal.SIGSTOP)
    server.connection.send(Kill())
    assert Exited(rank.pid, "did not answer, and was killed") == server.hear()
    server.connection.send(Kill())  # there is nobody, and nothing to be said
    start(server, ranks)


def test_a_new_rank_ends_the_one_before_and_nothing_is_said_of_that(server, ranks):
    before, link = start(server, ranks)
    start(server, ranks)
    before.wait()
    with pytest.raises((EOFError, OSError)):
        link.recv()
    assert not server.connection.poll()


def test_server_and_rank_end_when_the_worker_does(server, ranks):
    rank, _ = start(server, ranks)
    rank.kill(signal.SIGSTOP)
    server.connection.close()
    assert 0 == server.process.wait(puppets.WAIT_S)
    rank.wait()


def test_a_rank_ends_when_its_server_is_killed(server, ranks):
    rank, _ = start(server, ranks)
    server.process.kill()
    rank.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_neither_server_nor_rank(number, server, ranks):
    rank, _ = start(server, ranks)
    os.killpg(server.process.pid, number)
    assert rank.is_alive()
    start(server, ranks)


def test_children_of_a_rank_end_when_it_ends_them(server, ranks):
    rank, _ = start(server, ranks)
    assert signal.SIGTERM == rank.ends_a_child()


@pytest.fixture
def importing(ranks):
    """A server that is at its imports."""
    server = Server(ranks.imports)
    yield server, ranks.next()
    server.connection.close()
    server.process.kill()
    server.process.wait()


def test_a_signal_to_the_whole_group_ends_no_server_that_still_imports(importing):
    server, imports = importing
    os.killpg(server.process.pid, signal.SIGTERM)
    assert imports.is_alive()


@pytest.mark.parametrize(
    ("fail", "reason"), [("fail", "RuntimeError: as it was told"), ("cut", "EOFError")]
)
def test_what_cannot_be_imported_is_said(fail, reason, importing):
    server, imports = importing
    getattr(imports, fail)()
    unfit = server.hear()
    assert isinstance(unfit, Unfit)
    assert reason in unfit.reason
    server.process.wait(puppets.WAIT_S)


def test_what_fails_to_import_ahead_is_told_as_what_fails_later():
    code = "from fairseq_ray_plugin.worker import forkserver; "
    code += "forkserver.main(None, lambda folder, path: open(f'{folder}/{path[1]}'))"
    ours, end = Pipe()
    command = [sys.executable, "-c", code, str(end.fileno()), "/nowhere", "a", "b"]
    with subprocess.Popen(command, pass_fds=[end.fileno()]):
        end.close()
        assert ours.poll(puppets.WAIT_S), "it says nothing"
        unfit = ours.recv()
    assert isinstance(unfit, Unfit) and "No such file or directory: '/nowhere/b'" in unfit.reason


def test_a_server_that_imports_ends_when_its_worker_is_killed(ranks):
    code = """
import subprocess, sys
from multiprocessing.connection import Pipe
from fairseq_ray_plugin.assignment import Preload
ours, end = Pipe()
command = [sys.executable, sys.argv[1], str(end.fileno()), ""]
subprocess.Popen(command, pass_fds=[end.fileno()])
ours.send(Preload(cfg=bytes.fromhex(sys.argv[2]), working_dir="", python_path=(), user_dir=None))
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, puppets.PROGRAM, ranks.imports.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        imports = ranks.next()
        worker.kill()
        imports.wait()


@pytest.mark.parametrize(
    ("status", "out_of_memory", "expected"),
    [
        (0, False, "exited with code 0"),
        (3 << 8, True, "exited with code 3"),
        (signal.SIGKILL, False, "was killed by SIGKILL"),
        (signal.SIGKILL, True, "was killed by SIGKILL by the kernel, for lack of memory"),
        (signal.SIGABRT, True, "was killed by SIGABRT"),
        (signal.SIGSEGV | 0x80, False, "was killed by SIGSEGV"),  # with a core dump
        (signal.SIGRTMIN + 1, False, f"was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_what_became_of_a_process_is_said_for_people(status, out_of_memory, expected):
    assert expected == evidence.end_of(int(status), out_of_memory)


def test_the_kernels_count_of_kills_for_lack_of_memory_is_read():
    lines = subprocess.run(["cat", "/proc/vmstat"], capture_output=True, text=True).stdout
    counts = dict(line.split() for line in lines.splitlines())
    assert int(counts.get("oom_kill", 0)) == evidence.num_oom_kills()
