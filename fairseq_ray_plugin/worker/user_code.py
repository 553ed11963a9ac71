"""The user's own code, shipped to where it is missing.

Ray's runtime environments could ship it, too, but to every node, also where the folder is, with
whatever is not code up to 512 MiB, and without saying where it lies then, which fairseq must know.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath

from fairseq_ray_plugin.assignment import Job

LIMIT = 100 * 2**20
"""Bytes of files that are sent to a node; more than that is hardly code."""

IGNORE_FILE = ".rayignore"
"""In the folder: what is not sent, as in a .gitignore; Ray's own packaging reads it, too."""


class NotSent(Exception):
    """The folder cannot be sent: the message, one line, says why, and what to do."""


def pack_folder(folder: str, left_out: Collection[str] = ()) -> bytes:
    """The Python package in `folder` as a zip file.

    Without what its IGNORE_FILE names, hidden folders, virtual environments, what Python caches,
    and what is no file.

    Args:
        left_out: files and folders in it that are no code, such as this run's data.

    Raises:
        NotSent: it is too large, or cannot be read.
    """
    try:
        found = list(_files(folder, {os.path.realpath(path) for path in left_out}))
        _check_size(folder, found)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for path, _ in found:
                archive.write(path, os.path.relpath(path, os.path.dirname(folder)))
    except OSError as error:
        raise NotSent(f"it cannot be read: {error}") from error
    return buffer.getvalue()


def where_it_is(job: Job, place: str) -> str | None:
    """The folder of the user's own code on this node: unpacked in `place`, where it is missing.

    Raises:
        ValueError: it was not sent, or see `unpack_folder`.
    """
    if job.user_dir is None or os.path.isdir(job.user_dir):
        return job.user_dir
    if job.user_dir_zip is None:
        raise ValueError(f"it is not on this node and was not sent: {job.user_dir_not_sent}")
    return unpack_folder(job.user_dir_zip, os.path.basename(job.user_dir), place)


def unpack_folder(packed: bytes, name: str, place: str) -> str:
    """What `pack_folder` packed is a folder again, in `place`; returns its path.

    Raises:
        ValueError: it has a path that leads out of the folder, a link, or is larger than LIMIT.
    """
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        entries = archive.infolist()
        for entry in entries:
            path = PurePosixPath(entry.filename)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if path.is_absolute() or ".." in path.parts or path.parts[:1] != (name,):
                raise ValueError(f"the archive of {name} has a path out of it: {entry.filename}")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"the archive of {name} has what is no file: {entry.filename}")
        if sum(entry.file_size for entry in entries) > LIMIT:
            raise ValueError(f"the archive of {name} has more than {_in_mb(LIMIT)}")
        archive.extractall(place)
    return os.path.join(place, name)


def _files(folder: str, left_out: Collection[str]) -> Iterator[tuple[str, int]]:
    """Path and size of each file to be sent."""
    is_ignored = _ignored(folder)
    seen = {os.path.realpath(folder)}

    def is_sent(path: str, is_folder: bool) -> bool:
        relative = os.path.relpath(path, folder) + ("/" if is_folder else "")
        return os.path.realpath(path) not in left_out and not is_ignored(relative)

    def complain(error: OSError) -> None:
        raise error

    # links to folders are followed, for code may lie behind them; but none twice, as in a circle
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=complain):
        sent = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            is_made = name == "__pycache__" or os.path.exists(os.path.join(path, "pyvenv.cfg"))
            if name.startswith(".") or is_made or real in seen or not is_sent(path, True):
                continue
            seen.add(real)
            sent.append(name)
        folders[:] = sent
        for name in sorted(names):
            path = os.path.join(parent, name)
            if os.path.isfile(path) and is_sent(path, False):
                yield path, os.path.getsize(path)


def _ignored(folder: str) -> Callable[[str], bool]:
    """Whether the user's own file says that a relative path is not sent."""
    import pathspec

    try:
        with open(os.path.join(folder, IGNORE_FILE), encoding="utf-8") as file:
            return pathspec.GitIgnoreSpec.from_lines(file).match_file
    except FileNotFoundError:
        return lambda path: False


def _check_size(folder: str, found: Collection[tuple[str, int]]) -> None:
    total = sum(size for _, size in found)
    if total <= LIMIT:
        return
    sizes: Counter[str] = Counter()
    for path, size in found:
        sizes[os.path.relpath(path, folder).split(os.sep)[0]] += size
    ((largest, size),) = sizes.most_common(1)
    raise NotSent(
        f"it has {_in_mb(total)}, and at most {_in_mb(LIMIT)} are sent; {largest} alone has "
        f"{_in_mb(size)}: name what is not code in {os.path.join(folder, IGNORE_FILE)}"
    )


def _in_mb(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
