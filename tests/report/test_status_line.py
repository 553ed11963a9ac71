"""A line that stays at the bottom of a terminal, whatever is printed there."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from fairseq_ray_plugin.report.status_line import StatusLine, on_this_terminal
from fairseq_ray_plugin.worker import terminal

ROWS, COLUMNS = 8, 40


class Terminal:
    """A pseudo-terminal, and what a person would see on it."""

    def __init__(self):
        pyte = pytest.importorskip("pyte")
        self.ours, self.theirs = pty.openpty()
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.resize(ROWS, COLUMNS)
        self.line = StatusLine(self.theirs)

    def resize(self, rows, columns):
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def print(self, text):
        os.write(self.theirs, text.encode())
        return self

    def rows(self):
        os.write(self.theirs, b"\x00")
        while not (said := os.read(self.ours, 10_000)).endswith(b"\x00"):
            self.stream.feed(said)
        self.stream.feed(said[:-1])
        return [row.rstrip() for row in self.screen.display]


@pytest.fixture
def there():
    terminal = Terminal()
    yield terminal
    terminal.line.close()
    os.close(terminal.ours)
    os.close(terminal.theirs)


def test_it_stays_under_what_scrolls_by_and_goes_without_a_trace(there):
    there.print("$ train\n")
    there.line.show("2 workers | update 1")
    for number in range(20):
        there.print(f"line {number}\n")
        there.line.show(f"2 workers | update {number}")
    *above, last = there.rows()
    assert "2 workers | update 19" == last
    assert [*(f"line {n}" for n in range(14, 20)), ""] == above
    there.line.close()
    there.line.show("not any more")
    there.print("$ \n")
    assert ["line 18", "line 19", "$", ""] == there.rows()[-4:]


def test_what_was_printed_before_stays_where_the_cursor_was_in_the_last_row(there):
    for number in range(20):
        there.print(f"line {number}\n")
    there.line.show("status")
    there.print("and on\n")
    assert ["line 18", "line 19", "and on", "", "status"] == there.rows()[-5:]


def test_a_bar_that_is_shown_in_place_stays_above_it(there):
    there.print("before\n").line.show("status")
    for percent in range(0, 100, 10):
        there.print(f"{terminal.CLEAR}bar {percent}%{terminal.UP}\n")
        there.line.show(f"status {percent}")
    there.print("epoch done\n")
    rows = [row for row in there.rows() if row]
    assert ["before", "epoch done", "status 90"] == rows


def test_it_is_cut_to_the_terminal_and_moves_with_its_size(there):
    there.line.show("x" * 100)
    assert "x" * (COLUMNS - 1) == there.rows()[-1]
    there.resize(6, 30)
    there.line.show("smaller")
    for number in range(10):
        there.print(f"line {number}\n")
    *above, last = there.rows()
    assert "smaller" == last and ["line 9", ""] == above[-2:]
    assert not any("x" in row for row in above)


def test_a_terminal_that_was_stopped_stops_nobody(there):
    there.line.show("before")
    termios.tcflow(there.theirs, termios.TCOOFF)  # Ctrl-S
    for number in range(1000):
        there.line.show(f"{number} {'x' * COLUMNS}")
    termios.tcflow(there.theirs, termios.TCOON)
    assert "before" == there.rows()[-1]
    there.line.show("after")
    assert "after" == there.rows()[-1]


SCRIPT = """
from fairseq_ray_plugin.report.status_line import on_this_terminal
line = on_this_terminal()
print(line is not None)
if line is not None:
    line.show("status")
"""


@pytest.mark.parametrize(("term", "expected"), [("xterm", True), ("dumb", False)])
def test_only_a_terminal_has_it_and_the_end_of_the_process_frees_its_row(term, expected):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": term}
    subprocess.run([sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs, env=environment)
    said = os.read(ours, 10_000).decode()
    assert str(expected) in said and expected == ("status" in said)
    assert not expected or "\x1b[r" in said.partition("status")[2], "all rows scroll again"
    files = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    assert b"False\n" == files.stdout, "nothing where stdout is a file"
    os.close(ours)
    os.close(theirs)


def test_here_output_is_captured_and_there_is_none():
    assert on_this_terminal() is None or os.isatty(1)
