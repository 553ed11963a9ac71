"""Nothing that a rank has started is alive when the next one begins."""

import itertools
import os
import re
import signal
import sys
import time

import psutil
import pytest
from driving import Driver, start
from test_worker_end import snapshot_in_memory

from fairseq_ray_plugin.protocol import Blocked, Ended, FromRank, Hold, Publish, Running
from fairseq_ray_plugin.worker import family

pytestmark = pytest.mark.timeout(60)


def alive(*pids):
    """Those that run, or may again; not who only gives back its memory, or is not reaped yet."""
    return [pid for pid in pids if psutil.pid_exists(pid) and not family._is_exiting(pid)]


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *itertools.product(
            ("helper", "session", "daemon"),
            ("it is killed", "it ends", "another follows", "no answer"),
        ),
        ("loader", "it is killed"),  # torch's own; its import takes a second or two
    ],
)
def test_nothing_that_a_rank_has_started_outlives_it(kind, end, driver, ranks):
    rank = start(driver, ranks)
    started = rank.starts(kind)
    assert [started] == alive(started)
    match end:
        case "it is killed":
            rank.kill()
            assert isinstance(driver.hear().says, Ended)
        case "it ends":
            rank.exit(0)
            assert isinstance(driver.hear().says, Ended)
        case "no answer":
            rank.kill(signal.SIGSTOP)
            driver.tell(Hold(1, at_once=True))
            driver.let_pass(3)
            assert "did not answer, and was killed" == driver.hear().says.how
            assert [] == alive(rank.pid, started)
    begin = time.monotonic()
    start(driver, ranks, 2)
    assert time.monotonic() - begin < 1
    assert [] == alive(rank.pid, started)


def test_what_has_left_the_group_is_found_while_its_rank_gives_back_memory(driver, ranks):
    """Until that is over, it is that rank's child, and not its server's."""
    rank = start(driver, ranks)
    helper = rank.starts("session")
    rank.grows(1 << 30)
    start(driver, ranks, 2)
    assert [] == alive(helper)


def test_all_that_a_rank_has_started_ends_with_its_worker(driver, ranks):
    rank = start(driver, ranks)
    pids = [rank.pid, rank.starts("helper"), rank.starts("daemon")]
    driver.close()
    assert [] == alive(*pids)


def test_helpers_end_where_the_server_itself_is_killed(driver, ranks):
    rank = start(driver, ranks)
    helper = psutil.Process(rank.starts("helper"))
    driver.worker.server.process.kill()
    driver.hear()
    assert helper.wait(10) is None


def test_a_daemon_lives_as_long_as_its_rank(driver, ranks):
    rank = start(driver, ranks)
    daemon, other = rank.starts("daemon"), rank.starts("daemon")
    os.kill(other, signal.SIGKILL)  # which its server hears of, and takes for nothing else
    while alive(other):
        time.sleep(0.001)
    assert rank.is_alive() and [daemon] == alive(daemon)


def test_who_writes_outlives_a_rank(driver, ranks):
    """And what a rank leaves behind is told from it."""
    rank = start(driver, ranks)
    driver.tell(Publish(snapshot_in_memory(driver)))
    writer = ranks.next()
    daemon = rank.starts("daemon")
    rank.kill()
    driver.hear()
    start(driver, ranks, 2)
    assert [writer.pid] == alive(daemon, writer.pid) and writer.is_alive()


@pytest.fixture
def helpless(ranks, small_world, tmp_path):
    """A driver whose worker's server cannot kill anybody."""
    driver = Driver(ranks.unkillable, tmp_path / "save_dir")
    driver.hear()
    yield driver
    driver.close()


def test_where_something_cannot_be_ended_no_rank_begins_and_it_is_said(helpless, ranks):
    rank = start(helpless, ranks)
    helper, daemon = rank.starts("helper"), rank.starts("daemon")
    rank.kill()
    assert isinstance(helpless.hear().says, Ended)
    helpless.start(2)
    blocked = helpless.hear()
    assert isinstance(blocked, FromRank) and isinstance(blocked.says, Blocked)
    for pid in (helper, daemon):
        assert f"process {pid} (python" in blocked.says.reason
    assert "outlives SIGKILL" in blocked.says.reason
    helpless.tell(Hold(2, at_once=True))
    assert helpless.hear().says.update is None, "it holds nothing, and says so at once"
    for pid in (helper, daemon):
        os.kill(pid, signal.SIGKILL)
    helpless.start(3)
    assert isinstance(helpless.hear().says, Running)


def test_it_is_said_that_a_process_waits_in_the_kernel(tmp_path):
    """The parent of a child that shares its memory does, until that is another program."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    if (pid := os.fork()) == 0:
        opens = (os.POSIX_SPAWN_OPEN, 0, fifo, os.O_RDONLY, 0)  # never, for nobody writes
        os.posix_spawn(sys.executable, [sys.executable], {}, file_actions=[opens])
    while psutil.Process(pid).status() != psutil.STATUS_DISK_SLEEP:
        time.sleep(0.001)
    (child,) = psutil.Process(pid).children()
    text = family.describe(pid)
    for number in (pid, child.pid):
        os.kill(number, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert re.fullmatch(rf"process {pid} \(.+\) outlives SIGKILL: it waits in the kernel.*", text)
    assert f"process {pid} (unknown) outlives SIGKILL" == family.describe(pid)
