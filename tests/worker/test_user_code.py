"""The user's code travels, and nothing else: not what is beside it, nor where it should not go."""

import io
import os
import stat
import time
import zipfile

import pytest

from fairseq_ray_plugin.worker import user_code
from fairseq_ray_plugin.worker.user_code import NotSent, pack_folder, unpack_folder


@pytest.fixture
def package(tmp_path):
    package = tmp_path / "my_tasks"
    write(package / "__init__.py", "from . import data")
    write(package / "data" / "__init__.py", "")
    return package


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def large(path, size):
    """A file that takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


def sent(package, left_out=()):
    with zipfile.ZipFile(io.BytesIO(pack_folder(str(package), left_out))) as archive:
        return {name.removeprefix("my_tasks/") for name in archive.namelist()}


CODE = {"__init__.py", "data/__init__.py"}


def test_what_is_packed_is_the_same_folder_elsewhere(package, tmp_path):
    write(package / "data" / ".words", "a hidden file may be of use")
    (package / "models").symlink_to(tmp_path / "shared")
    write(tmp_path / "shared" / "big.py", "code behind a link")
    (package / "models" / "circle").symlink_to(package)
    os.utime(package / "__init__.py", (0, 0))  # zip files begin in 1980
    there = unpack_folder(pack_folder(str(package)), "my_tasks", str(tmp_path / "there"))
    found = {os.path.relpath(os.path.join(p, f), there) for p, _, fs in os.walk(there) for f in fs}
    assert {*CODE, "data/.words", "models/big.py"} == found
    assert "from . import data" == open(os.path.join(there, "__init__.py")).read()


def test_what_no_code_is_stays_where_it_is(package):
    for name in (".git/config", "__pycache__/x.pyc", "data/__pycache__/x.pyc", "env/bin/python"):
        write(package / name, "")
    write(package / "env" / "pyvenv.cfg", "")
    os.mkfifo(package / "pipe")
    (package / "dangling").symlink_to("nowhere")
    assert CODE == sent(package)


def test_this_runs_data_and_checkpoints_beside_the_code_are_not_sent(package):
    for name in ("bin/train.bin", "checkpoints/checkpoint_last.pt"):
        large(package / name, 300 * 2**20)
    assert CODE == sent(package, [str(package / "bin"), str(package / "checkpoints")])
    assert CODE == sent(package, [package.parent, package / "bin", package / "checkpoints"])


def test_what_the_users_own_file_names_is_not_sent(package):
    write(package / ".rayignore", "# not code\n*.bin\n/corpus/\n!keep.bin\ndata/*.txt\n")
    for name in (
        "a.bin",
        "data/b.bin",
        "keep.bin",
        "corpus/x.py",
        "data/corpus/y.py",
        "data/z.txt",
    ):
        write(package / name, "")
    assert {*CODE, ".rayignore", "keep.bin", "data/corpus/y.py"} == sent(package)


def test_300_mb_beside_the_code_do_not_travel_and_the_line_says_what_to_do(package):
    for number in range(3):
        large(package / "corpus" / f"{number}.txt", 100 * 2**20)
    begin = time.monotonic()
    with pytest.raises(NotSent) as refused:
        pack_folder(str(package))
    assert time.monotonic() - begin < 1, "they are not even read"
    assert (
        "it has 300 MiB, and at most 100 MiB are sent; corpus alone has 300 MiB: name what is not "
        f"code in {package}/.rayignore" == str(refused.value)
    )


def test_what_cannot_be_read_is_said(package, monkeypatch):
    def unreadable(*_):
        raise PermissionError(13, "Permission denied", "secret.py")

    monkeypatch.setattr(zipfile.ZipFile, "write", unreadable)
    with pytest.raises(NotSent, match="it cannot be read: .*Permission denied: 'secret.py'"):
        pack_folder(str(package))


def archive_of(name, content=b"", mode=0):
    buffer = io.BytesIO()
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("/etc/cron.d/x", 0, "has a path out of it: /etc/cron.d/x"),
        ("my_tasks/../../x", 0, "has a path out of it"),
        ("other/x.py", 0, "has a path out of it"),
        ("my_tasks/x.py", stat.S_IFLNK | 0o777, "has what is no file: my_tasks/x.py"),
    ],
)
def test_an_archive_with_a_way_out_of_its_folder_is_not_unpacked(name, mode, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        unpack_folder(archive_of(name, mode=mode), "my_tasks", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_an_archive_that_would_fill_the_disk_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(user_code, "LIMIT", 1000)
    with pytest.raises(ValueError, match="more than"):
        unpack_folder(archive_of("my_tasks/x", bytes(2000)), "my_tasks", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
