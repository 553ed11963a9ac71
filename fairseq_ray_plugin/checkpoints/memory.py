"""Folders in a node's memory for snapshots: one a run, gone when the run is.

A folder belongs to whoever holds a lock on the file `held` in it. The kernel drops the lock of a
process that dies, however it dies, so what nobody holds was abandoned and can go.

What is in them is unpickled, so that who could put a file there would run code as this user. Other
users of the machine may write beside them: a folder has a name that nobody can guess, another one
in each root, and is taken only if it is this user's alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator

import psutil

from fairseq_ray_plugin.checkpoints import files

logger = logging.getLogger(__name__)

PREFIX = "fairseq_ray_"

RAW = ".raw"
"""How names of snapshots end (see `raw`)."""

_SPARE = "spare"
"""A file that was a snapshot: its pages are there, and need not be found again."""


def roots() -> list[str]:
    """The folder whose files live in memory, and one on disk for when there is no such room."""
    in_memory = [path for path in ("/dev/shm",) if os.access(path, os.W_OK | os.X_OK)]
    if not in_memory:
        logger.warning("no /dev/shm here: snapshots go to %s, which may be slow", _on_disk())
    return [*in_memory, _on_disk()]


def _on_disk() -> str:
    return tempfile.gettempdir()


class NotPrivate(OSError):
    """Somebody else may put files into a folder, or another folder in its place."""


class MemoryFolder:
    """This worker's hold on the run's folders on this node; made, and others' leavings removed.

    Args:
        secret: of the run, which its workers alone know: nobody else can tell the folders' names.
        node: several nodes of a cluster may share a machine.
    """

    def __init__(self, secret: str, node: str) -> None:
        self._held: dict[str, int] = {}
        self.refusals: list[str] = []
        """What is wrong with the places in which there is no folder."""

        for root in dict.fromkeys(roots()):
            folder = os.path.join(root, folder_name(secret, root, node))
            try:
                _check_root(root)
                # ours too may be held by nobody: its last worker died, and what it kept is wanted
                _remove_abandoned(root, but=folder)
                while (held := _hold(folder)) is None:
                    pass  # another worker took it for abandoned before it was locked
                self._held[folder] = held
            except OSError as error:
                self.refusals.append(str(error))
                logger.warning("no snapshots in %s: %s", root, error)

    @property
    def folders(self) -> tuple[str, ...]:
        """Where snapshots may go, the best first; there may be none."""
        return tuple(self._held)

    def has(self, path: str) -> bool:
        """Whether a snapshot is there, in a folder of ours: what lies elsewhere is not opened."""
        try:
            return os.path.dirname(path) in self._held and stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            return False

    def remove(self, paths: Iterable[str]) -> None:
        """Snapshots that are of no use any more; one that stays takes room, and that is all."""
        for path in paths:
            spare = os.path.join(os.path.dirname(path), _SPARE)
            with contextlib.suppress(OSError):
                if not self.has(path):
                    continue
                if path.endswith(RAW) and os.stat(path).st_nlink == 1 and not os.path.exists(spare):
                    os.rename(path, spare)
                else:
                    os.remove(path)

    def remove_partials(self) -> None:
        """What killed writers left of a snapshot."""
        for folder in self.folders:
            files.remove_partials(folder)

    def remove_folders(self) -> None:
        """What killed workers left: `NAME_PID`, a worker's own folder."""
        for folder in self.folders:
            for path in glob.glob(os.path.join(glob.escape(folder), "*_*", "")):
                if _is_of_the_dead(path.rstrip("/").rpartition("_")[2]):
                    shutil.rmtree(path, ignore_errors=True)

    def own(self, what: str) -> str:
        """Path of a folder on disk that no other worker has; it need not be there."""
        return os.path.join(self.folders[-1], f"{what}_{os.getpid()}")

    def shared(self, what: str) -> str:
        """Path of a file that the node's workers share; empty where that would be on its disk."""
        in_memory, *on_disk = self.folders
        return os.path.join(in_memory, what) if on_disk else ""

    def release(self) -> None:
        """Let go, of what is this worker's own, too; the last one takes the folders away."""
        for folder in self.folders:
            for path in glob.glob(os.path.join(glob.escape(folder), f"*_{os.getpid()}", "")):
                shutil.rmtree(path, ignore_errors=True)
        for folder, held in self._held.items():
            os.close(held)
            _remove_abandoned(os.path.dirname(folder))


def _is_of_the_dead(pid: str) -> bool:
    return pid.isdigit() and not psutil.pid_exists(int(pid))


def use_spare(path: str) -> None:
    """A file is at `path` that may be overwritten, if there is one to spare beside it."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(os.path.join(os.path.dirname(path), _SPARE), path)


def folder_name(secret: str, root: str, node: str) -> str:
    """The name of a run's folder in a root; who sees one cannot tell those in other roots."""
    digest = hashlib.sha256(f"{secret} {root} {node}".encode()).hexdigest()
    return f"{PREFIX}{digest[:32]}_{node}"


def _check_root(root: str) -> None:
    """Nobody else can move away what is ours in `root`; else raises NotPrivate."""
    there = os.stat(root)
    others_write, is_sticky = there.st_mode & 0o022, there.st_mode & stat.S_ISVTX
    if others_write and not is_sticky:
        raise NotPrivate(f"others may rename what is in {root}: chmod +t it, or set TMPDIR")
    if there.st_uid not in (0, os.geteuid(), _unmapped_user()):
        raise NotPrivate(f"{root} belongs to another user: set TMPDIR to a folder of yours")


def _unmapped_user() -> int:
    """As whom a container without root's rights shows the machine's root, and all other users."""
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            return int(file.read())
    except OSError:
        return 0


def _open_private(folder: str) -> int:
    """A descriptor of a folder that is this user's alone; what is at its path may change.

    Raises:
        NotPrivate: it is not, or is no folder.
        FileNotFoundError: there is nothing.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:  # also a link to a folder
        raise NotPrivate(f"{folder} is no folder") from error
    except PermissionError as error:
        raise NotPrivate(f"{folder} belongs to another user") from error
    there = os.fstat(fd)
    if there.st_uid == os.geteuid() and not there.st_mode & 0o077:
        return fd
    os.close(fd)
    raise NotPrivate(f"{folder} is not this user's alone: somebody made it before this run could")


def _hold(folder: str) -> int | None:
    """The lock on a folder, which is made; None: somebody removed it meanwhile."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    try:
        with _opened(folder) as fd:
            held = os.open("held", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600, dir_fd=fd)
            fcntl.flock(held, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), os.stat("held", dir_fd=fd)):
                    return held
            os.close(held)
    except FileNotFoundError:
        pass
    return None


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    fd = _open_private(folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_abandoned(parent: str, but: str | None = None) -> None:
    """Of this user's runs."""
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not name.startswith(PREFIX) or folder == but:
            continue
        try:
            with _opened(folder) as fd:
                held = os.open("held", os.O_RDWR | os.O_NOFOLLOW, dir_fd=fd)
        except OSError:
            continue  # being made, or another user's
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # somebody's
        finally:
            os.close(held)
