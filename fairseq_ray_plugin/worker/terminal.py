"""fairseq's progress bar on the terminal of the command, where a rank's output comes by lines."""

from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any, TextIO

from fairseq_ray_plugin.compat.modules import Overlay

COLUMNS = "FAIRSEQ_RAY_COLUMNS"
"""Environment variable: how wide the terminal of the command is, where there is one."""

INTERVAL_S = 1.0
"""Between two states of the bar."""

CLEAR, UP = "\x1b[K", "\x1b[A"


def announce(common: Any) -> None:
    """The ranks are to know of this process's terminal, if a bar is wanted there.

    Args:
        common: fairseq's CommonConfig.
    """
    os.environ.pop(COLUMNS, None)
    if sys.stderr.isatty() and common.log_format in (None, "tqdm") and not common.no_progress_bar:
        os.environ[COLUMNS] = str(shutil.get_terminal_size().columns)


def show_bar() -> None:
    """Patch fairseq and tqdm, in this process: the bar is shown where the command runs."""
    columns = os.environ.get(COLUMNS)
    if columns is None:
        return
    from fairseq.logging import progress_bar
    from tqdm.std import tqdm

    terminal = types.SimpleNamespace(isatty=lambda: True)
    progress_bar.sys = Overlay(sys, stderr=terminal)
    tqdm.status_printer = staticmethod(print_in_place)
    made = tqdm.__init__

    def make_fitting(bar: Any, *args: Any, **options: Any) -> None:
        options.setdefault("mininterval", INTERVAL_S)
        options.setdefault("ncols", int(columns) - 1)
        made(bar, *args, **options)

    tqdm.__init__ = make_fitting


def print_in_place(file: TextIO) -> Callable[[str], None]:
    """What shows a bar in lines, each of which takes the place of the one before."""

    def print_status(status: str) -> None:
        if status.strip():  # with the cursor up before the line's end it stays in its row
            file.write(f"{CLEAR}{status}{UP}\n")
            file.flush()

    return print_status
