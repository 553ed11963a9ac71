"""One line at the bottom of a terminal, under all that scrolls there.

The terminal itself keeps it: what scrolls is all but its last row (DECSTBM, as apt has it), so
whoever prints, bars and other processes too, prints above, and need not know.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select

SAVE, RESTORE, CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[2K"
DOWN, UP = "\x1bD", "\x1b[A"  # down also scrolls
DIM, PLAIN = "\x1b[2m", "\x1b[0m"

LEAST_ROWS = 4


class StatusLine:
    """Shows a text there until it is closed; the process's end closes it, too.

    Args:
        fd: of the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size: os.terminal_size | None = None
        """Of the terminal, when its last row was taken."""

        self._is_open = True
        atexit.register(self.close)

    def show(self, text: str) -> None:
        """That is the line now."""
        if not self._is_open or not self._takes_more():
            return
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._fd)
            if size.lines < LEAST_ROWS:
                return
            taken = self._take(size) if size != self._size else ""
            line = text[: size.columns - 1]
            # in one piece: what others print comes before or after
            self._write(f"{taken}{SAVE}\x1b[{size.lines};1H{CLEAR_LINE}{DIM}{line}{PLAIN}{RESTORE}")

    def close(self) -> None:
        """The terminal is as it was before, but for what was printed."""
        if not self._is_open:
            return
        self._is_open = False
        atexit.unregister(self.close)
        if self._size is not None and self._takes_more():
            with contextlib.suppress(OSError):
                rows = self._size.lines
                self._write(f"{SAVE}\x1b[r\x1b[{rows};1H{CLEAR_LINE}{RESTORE}")

    def _take(self, size: os.terminal_size) -> str:
        """What makes the last row the line's: the cursor may be in it, and goes one up."""
        before, self._size = self._size, size
        # the row that was the line's in a terminal of another size scrolls away with the others
        clear = "" if before is None else f"{SAVE}\x1b[r\x1b[{before.lines};1H{CLEAR_LINE}{RESTORE}"
        return f"{clear}{DOWN}{UP}{SAVE}\x1b[1;{size.lines - 1}r{RESTORE}"

    def _takes_more(self) -> bool:
        """Whether writing returns: who has pressed Ctrl-S stops a terminal, but no training."""
        return bool(select.select([], [self._fd], [], 0)[1])

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode(errors="replace"))


def on_this_terminal() -> StatusLine | None:
    """A line, where all that this process prints goes to a terminal that can do that."""
    is_terminal = os.isatty(1) and os.isatty(2)
    return StatusLine(2) if is_terminal and os.environ.get("TERM", "dumb") != "dumb" else None
