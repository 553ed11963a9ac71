"""Files that appear whole or not at all, and what is left of those that did not."""

import os
import signal
import socket
from pathlib import Path

from fairseq_ray_plugin.checkpoints import files


def killed_while_writing(path):
    """A process begins to write, and is killed; its file."""
    if (child := os.fork()) == 0:
        with files.whole(str(path)) as partial:
            Path(partial).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return Path(f"{path}.{socket.gethostname()}.{child}.tmp")


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_text("the old one")
    left = killed_while_writing(path)
    assert left.exists() and "the old one" == path.read_text()
    with files.whole(str(path)) as partial:
        Path(partial).write_text("the new one")
        files.remove_partials(str(tmp_path))
        assert [partial] == [*map(str, tmp_path.glob("*.tmp"))]
    assert "the new one" == path.read_text()
    assert [path] == [*tmp_path.iterdir()]


def test_what_another_host_left_stays_while_it_may_be_written_to(tmp_path):
    left, young = tmp_path / "a.pt.elsewhere.1.tmp", tmp_path / "b.pt.elsewhere.2.tmp"
    for path in (left, young, tmp_path / "notes.tmp", tmp_path / "x.7.tmp.gz"):
        path.touch()
    os.utime(left, (0, 0))
    files.remove_partials(str(tmp_path))
    assert not left.exists() and 3 == len([*tmp_path.iterdir()])


def test_a_folder_that_is_not_there_has_none(tmp_path):
    files.remove_partials(str(tmp_path / "nowhere"))
