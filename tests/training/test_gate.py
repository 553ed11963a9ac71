"""Where a rank waits that stands by, and what it is told."""

import threading
import time

import pytest

from fairseq_ray_plugin.training.gate import Gate
from fairseq_ray_plugin.training.steps import Steps


def gate(restore=None, stands_by=False, waiting=None):
    steps = Steps()
    made = Gate(restore, stands_by, steps, on_waiting=lambda: waiting.append("waits"))
    return made, steps


@pytest.mark.parametrize(("restore", "is_first"), [(None, True), ("/memory/held.raw", False)])
def test_who_does_not_stand_by_goes_on_at_once(restore, is_first):
    open_gate, steps = gate(restore)
    steps.end("model")
    assert not open_gate.is_closed
    assert is_first is open_gate.is_first_start
    assert restore == open_gate.wait()
    assert ["model"] == [name for name, _ in steps.so_far()]


def test_who_stands_by_says_so_once_and_waits_for_what_to_go_on_from():
    waiting, found = [], []
    closed, steps = gate(stands_by=True, waiting=waiting)
    assert closed.is_closed and not closed.is_first_start, "it never is"
    steps.end("model")
    thread = threading.Thread(target=lambda: found.append((closed.wait(), closed.wait())))
    thread.start()
    while not waiting:
        time.sleep(0.01)
    assert not found
    closed.open("/memory/held.raw")
    thread.join(10)
    assert [("/memory/held.raw",) * 2] == found
    assert ["waits"] == waiting
    assert () == steps.so_far(), "nobody waited for what was before"


def test_who_is_told_before_it_comes_to_the_gate_does_not_wait():
    waiting = []
    closed, steps = gate(stands_by=True, waiting=waiting)
    steps.end("meet")
    closed.open("/memory/held.raw")
    steps.end("model")
    assert not closed.is_closed and not closed.is_first_start
    assert "/memory/held.raw" == closed.wait()
    assert [] == waiting
    assert ["model"] == [name for name, _ in steps.so_far()], "of this the rest was waited for"
