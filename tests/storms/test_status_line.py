"""The line at the bottom of a terminal on which a real run is followed, with fairseq's own bar."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time

import data
import pytest
from runs import BIN

pyte = pytest.importorskip("pyte")

ROWS, COLUMNS = 24, 110


def test_a_real_run_has_its_line_under_the_bar_and_leaves_none(tmp_path, english):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [
            *(BIN / "fairseq-ray-train", english, *data.without(data.MASKED_LM, "--log-format")),
            *("--save-dir", tmp_path / "save", "--ray-address", "local", "--max-update", "2000"),
        ],
        stdout=theirs,
        stderr=theirs,
        env=data.environment() | {"TERM": "xterm"},
    )
    os.close(theirs)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    seen = []

    def read():
        try:
            while said := os.read(ours, 100_000):
                stream.feed(said)
                seen.append([row.rstrip() for row in screen.display])
        except OSError:  # as a terminal says that the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + 150
    try:
        while not any(" updates/s | goodput 0." in rows[-1] for rows in list(seen)):
            assert time.monotonic() < end and process.poll() is None, seen[-1:]
            time.sleep(0.1)
        time.sleep(3)
    finally:
        process.terminate()
        process.wait(60)
        reader.join(10)
        os.close(ours)
    with_line = [rows for rows in seen if "updates/s | goodput" in rows[-1]]
    assert any("epoch 0" in row and "%|" in row for rows in with_line for row in rows[:-1]), (
        "the bar is above"
    )
    bars = [sum("epoch 0" in row and "%|" in row for row in rows) for rows in with_line]
    assert 1 == max(bars), "in one row"
    assert not any(" goodput 0." in row and "updates/s" in row for row in seen[-1]), "it is gone"
    assert any("python -m fairseq_ray_plugin report" in row for row in seen[-1])
    (tmp_path / "screen.txt").write_text("\n".join(with_line[-1]))
