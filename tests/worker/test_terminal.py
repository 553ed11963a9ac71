"""fairseq's bar on a terminal at the other end of lines."""

import io
import os
import subprocess
import sys
import types

import data
import pytest

from fairseq_ray_plugin.worker import terminal

BAR = """
import os, sys
os.environ["FAIRSEQ_RAY_COLUMNS"] = "60"
from fairseq_ray_plugin import compat
compat.apply()
from fairseq.logging import progress_bar
from fairseq_ray_plugin.worker import terminal
terminal.INTERVAL_S = 0
terminal.show_bar()
bar = progress_bar.progress_bar(list(range(5)), epoch=1)
for number in bar:
    bar.log({"loss": number})
"""


def screen(text):
    """Rows of a terminal on which that was printed; each \\n also returns, as a terminal has it."""
    rows, row = [""], 0
    for line in text.split("\n")[:-1]:
        clears, moves_up = line.startswith(terminal.CLEAR), line.endswith(terminal.UP)
        line = line.removeprefix(terminal.CLEAR).removesuffix(terminal.UP)
        rows[row] = line if clears else line + rows[row][len(line) :]
        row += 0 if moves_up else 1
        rows += [""] * (row + 1 - len(rows))
    return rows


def test_states_of_a_bar_take_each_others_place_and_a_line_takes_the_bars():
    file = io.StringIO()
    file.write("before\n")
    show = terminal.print_in_place(file)
    for status in ("epoch 1: 10%", "epoch 1: 9", ""):
        show(status)
    assert ["before", "epoch 1: 9"] == screen(file.getvalue())
    file.write("what comes then\n")
    assert ["before", "what comes then", ""] == screen(file.getvalue())


def test_fairseqs_own_bar_is_shown_in_one_row():
    result = subprocess.run(
        [sys.executable, "-c", BAR], capture_output=True, text=True, env=data.environment()
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith(terminal.CLEAR)]
    assert len(lines) > 2, result.stderr
    assert all("epoch 001" in line and line.endswith(terminal.UP) for line in lines)
    assert max(map(len, lines)) <= 60 + len(terminal.CLEAR + terminal.UP)


@pytest.mark.parametrize(
    ("is_terminal", "log_format", "no_bar", "columns"),
    [(True, None, False, "80"), (True, "json", False, None), (True, None, True, None)]
    + [(True, "tqdm", False, "80"), (False, None, False, None)],
)
def test_a_bar_is_for_a_terminal_where_it_is_wanted(
    is_terminal, log_format, no_bar, columns, monkeypatch
):
    monkeypatch.setenv(terminal.COLUMNS, "of another run")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: is_terminal))
    terminal.announce(types.SimpleNamespace(log_format=log_format, no_progress_bar=no_bar))
    assert columns == os.environ.get(terminal.COLUMNS)
