"""The checkpoints in a save dir: which there are, whether they are whole, and the newest."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from fairseq_ray_plugin.checkpoints import archive, contents, manifests, sums
from fairseq_ray_plugin.checkpoints.archive import Opaque
from fairseq_ray_plugin.checkpoints.contents import Facts, NoCheckpoint, Summary
from fairseq_ray_plugin.checkpoints.sums import Damaged

logger = logging.getLogger(__name__)

SUFFIX = ".pt"
"""How the names of checkpoints end."""


class NoneWhole(Exception):
    """There are checkpoints, and no whole one; the message, one line, says why."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file that may be a checkpoint."""

    name: str
    path: str
    size: int
    time: float
    """When it was written; seconds since 1970."""

    @property
    def is_named_so(self) -> bool:
        """Whether it is called as fairseq calls its checkpoints."""
        return self.name.startswith("checkpoint")


Known = tuple[Entry, Facts]


class Place(Protocol):
    """Where checkpoints are: a folder, or an object store (`stored`)."""

    name: str
    """For people."""

    def entries(self) -> Sequence[Entry]:
        """What may be a checkpoint, by name."""

    def facts(self, entry: Entry) -> Facts:
        """Of which moment it is."""

    def summary(self, entry: Entry) -> Summary:
        """What is in it."""

    def verify(self, entry: Entry) -> None:
        """Its content is what was written; else raises Damaged."""

    def local(self, entry: Entry) -> str:
        """The path at which its content is on this machine."""


class Folder:
    """The checkpoints in a save dir on a disk."""

    def __init__(self, save_dir: str, must_exist: bool = False) -> None:
        self.name, self._must_exist = save_dir, must_exist

    def entries(self) -> list[Entry]:
        return entries(self.name, self._must_exist)

    def facts(self, entry: Entry) -> Facts:
        return facts(entry.path)

    def summary(self, entry: Entry) -> Summary:
        return contents.summary(entry.path)

    def verify(self, entry: Entry) -> None:
        verify(entry.path)

    def local(self, entry: Entry) -> str:
        return entry.path


def entries(save_dir: str, must_exist: bool = False) -> list[Entry]:
    """What may be a checkpoint in the folder, by name.

    Raises:
        OSError: the folder cannot be read; also where there is none, and it must exist.
    """
    try:
        files = [file for file in os.scandir(save_dir or ".") if file.name.endswith(SUFFIX)]
    except FileNotFoundError:
        if must_exist:
            raise
        return []
    found = []
    for file in sorted(files, key=lambda file: file.name):
        try:
            if file.is_file():
                about = file.stat()
                found.append(Entry(file.name, file.path, about.st_size, about.st_mtime))
        except FileNotFoundError:
            pass  # removed meanwhile
    return found


def verify(path: str) -> None:
    """The content of the checkpoint at `path` is what was written.

    Raises:
        Damaged: it is not.
        Opaque: nothing tells.
        OSError: it cannot be read.
    """
    manifest = manifests.read(path)
    if manifest is None:
        archive.check(path)
        return
    if sums.whole_file(path) != manifest.file:
        archive.check(path)  # which says where
        raise Damaged("its CRC32 is not that of what was written")


def facts(path: str) -> Facts:
    """Of which moment the checkpoint at `path` is; the file is not read where its manifest says so.

    Raises:
        as `contents.summary`.
    """
    manifest = manifests.read(path)
    return manifest.facts if manifest is not None else contents.summary(path)


def newest(
    place: Place, belongs: Callable[[Summary], bool], last: str = "checkpoint_last.pt"
) -> str | None:
    """The local path of the newest whole checkpoint of a training, by updates; None: there is none.

    There is a warning for each one that is damaged. Which training it is says the last checkpoint:
    where that one was begun anew, what others have left in the folder is not gone on from.

    Args:
        belongs: whether a checkpoint, whatever it is called, is of a training such as this one.
        last: the name of the one that is of this training in any case, as ever with fairseq.

    Raises:
        NoneWhole: there are some, and no whole one.
        OSError: the folder cannot be read.
        stores.StoreError: the store cannot be, or not now.
    """

    def is_ours(entry: Entry) -> bool:
        return entry.name == last or belongs(place.summary(entry))

    known, damage, unknown = _look(place)
    candidates = _of_one_training(known, is_ours, last)
    for entry, found in sorted(candidates, key=lambda pair: _order(pair[0], pair[1], last)):
        try:
            if not is_ours(entry):
                continue
            place.verify(entry)
            path = place.local(entry)
        except (Damaged, OSError) as error:
            damage[entry] = _say(entry, error)
            continue
        except NoCheckpoint:
            continue
        if entry.name != last:
            logger.warning(
                "going on from %s, after update %d: %s is not the newest whole checkpoint",
                *(entry.path, found.updates, last),
            )
        return path
    for entry in unknown:
        if entry.name == last:  # fairseq may know what to do with it
            return place.local(entry)
    _refuse_where_all_are_damaged(place.name, damage)
    if known:
        names = ", ".join(entry.name for entry, _ in known[:5])
        logger.warning("checkpoints of another training are in %s: %s", place.name, names)
    return None


def _look(place: Place) -> tuple[list[Known], dict[Entry, str], list[Entry]]:
    """Checkpoints, those that are damaged and in what way, and what is something else."""
    known, damage, unknown = [], {}, []
    for entry in place.entries():
        try:
            known.append((entry, place.facts(entry)))
        except (NoCheckpoint, Opaque):
            unknown.append(entry)
        except FileNotFoundError:
            pass  # removed meanwhile
        except (Damaged, OSError) as error:
            if entry.is_named_so:
                damage[entry] = _say(entry, error)
    return known, damage, unknown


def _of_one_training(
    known: list[Known], is_ours: Callable[[Entry], bool], last: str
) -> list[Known]:
    """Those of the training that the last checkpoint is of, or else the latest one.

    Stock fairseq's do not say whose they are: of it is what was written since it began, or what it
    may have gone on from.
    """
    training = None
    for entry, found in sorted(known, key=lambda pair: (pair[0].name != last, -pair[0].time)):
        with contextlib.suppress(Damaged, NoCheckpoint, OSError):
            if is_ours(entry):
                training = found.training
                break
    if training is None:
        return known
    ours = [pair for pair in known if pair[1].training == training]
    begin = min(entry.time for entry, _ in ours)
    fewest = min(found.updates for _, found in ours)
    nameless = [pair for pair in known if pair[1].training is None]
    return ours + [p for p in nameless if p[0].time >= begin or p[1].updates <= fewest]


def _order(entry: Entry, found: Facts, last: str) -> tuple[int, bool, float]:
    """The most updates first; of several after as many, the last checkpoint, or the latest."""
    return -found.updates, entry.name != last, -entry.time


def _say(entry: Entry, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    logger.warning("checkpoint %s is damaged: %s", entry.path, reason)
    return f"{entry.name} ({reason})"


def _refuse_where_all_are_damaged(save_dir: str, damage: dict[Entry, str]) -> None:
    if damage:
        raise NoneWhole(
            f"no whole checkpoint is in {save_dir}: {', '.join(damage.values())}; put one there, "
            "or move these away to begin anew"
        )
