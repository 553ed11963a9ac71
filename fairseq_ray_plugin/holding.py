"""What a control loop holds while it lives: the save dir, and the run's journal there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator

from fairseq_ray_plugin.assignment import Job
from fairseq_ray_plugin.checkpoints import claim, claim_places, stores
from fairseq_ray_plugin.checkpoints.journal_copy import JournalCopy
from fairseq_ray_plugin.report.journal import Journal

logger = logging.getLogger(__name__)


class Unusable(Exception):
    """Training cannot write into the save dir, or must not: the message, one line, says why."""


@dataclasses.dataclass(frozen=True)
class Held:
    job: Job
    """With the claim's number, by which ranks and workers know that it is not another run's."""

    claim: claim.Claim | None
    journal: Journal


@contextlib.contextmanager
def hold(job: Job, save_dir: str, run: str = "", is_needed: bool = True) -> Iterator[Held]:
    """The save dir is this run's.

    Args:
        save_dir: a path or a URL.
        run: identifies a run that outlives this process, and holds it already.
        is_needed: otherwise a loop goes on where this node does not see the save dir.

    Raises:
        Unusable: a living run has it, or it cannot be used.
    """
    with contextlib.ExitStack() as undo:
        held = None
        try:
            held = claim.take(claim_places.place_of(save_dir), stores.shown(save_dir), run=run)
            undo.callback(held.release)
            journal = Journal(_folder(save_dir, undo), job.name, stores.shown(save_dir))
        except claim.InUse as error:
            raise Unusable(str(error)) from error
        except (OSError, stores.StoreError) as error:
            if is_needed:
                shown = stores.shown(save_dir)
                raise Unusable(f"--save-dir {shown} cannot be used: {error}") from error
            folder = tempfile.mkdtemp(prefix="fairseq_ray_journal_")
            logger.warning("this node cannot use the save dir: %s; journal: %s", error, folder)
            journal = Journal(folder, job.name)
        yield Held(dataclasses.replace(job, claim=held.number if held else 0), held, journal)


def whole_name(save_dir: str) -> str:
    """The same for the same save dir, wherever the command was given."""
    return save_dir if stores.is_url(save_dir) else os.path.abspath(save_dir)


def _folder(save_dir: str, undo: contextlib.ExitStack) -> str:
    """Where the journal is written."""
    if not stores.is_url(save_dir):
        return save_dir
    copy = JournalCopy(stores.open_store(save_dir))
    undo.callback(copy.close)
    return copy.folder
