"""Writing in the background stops nobody, and nothing of it is lost without a word."""

import threading

from fairseq_ray_plugin.report.background import Background

WAIT_S = 10
"""A test fails that waits longer for what it expects."""


def test_what_is_written_keeps_its_order(caplog):
    written = []
    background = Background(written.append, "journal")
    for number in range(1000):
        background.put(number)
    background.close(WAIT_S)
    assert [*range(1000)] == written
    assert "" == caplog.text


def test_a_write_that_never_returns_stops_nobody(caplog):
    is_reached, goes_on = threading.Event(), threading.Event()
    written = []

    def write(item):
        is_reached.set()
        goes_on.wait(WAIT_S)
        written.append(item)

    background = Background(write, "journal")
    background.put("one")
    assert is_reached.wait(WAIT_S)
    background.put("two")
    background.close(limit_s=0.01)
    assert [] == written
    assert "journal could not be written in time" in caplog.text
    goes_on.set()  # the file system is back, and the process still there
    background.close(WAIT_S)
    assert ["one", "two"] == written


def test_a_write_that_fails_is_said_once_and_the_others_go_on(caplog):
    written = []

    def write(item):
        if item % 2:
            raise OSError(28, "No space left on device")
        written.append(item)

    background = Background(write, "journal")
    for number in range(6):
        background.put(number)
    background.close(WAIT_S)
    assert [0, 2, 4] == written
    assert 1 == caplog.text.count("No space left on device")
    assert "journal: lines are missing" in caplog.text
