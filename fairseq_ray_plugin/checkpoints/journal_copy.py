"""The journal of a run whose save dir is in a store: a local file, put there again and again."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading

from fairseq_ray_plugin.checkpoints.stores import Missing, Store, StoreError
from fairseq_ray_plugin.report.journal import FILE_NAME

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""How often it is put to the store, where there is something new."""

ABANDONED_S = 3600.0
"""Uploads that were begun so long ago and never ended are a dead run's."""


class JournalCopy:
    """A folder for the journal, which goes on from the store's; a thread keeps that one up to date.

    Nothing waits for the store but `close`, and the beginning.

    Raises:
        StoreError: the store cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.folder = tempfile.mkdtemp(prefix="elastic_journal_")
        self._path = os.path.join(self.folder, FILE_NAME)
        self._sent = b""
        with contextlib.suppress(Missing):
            self._sent = store.get_bytes(FILE_NAME)
            with open(self._path, "wb") as file:
                file.write(self._sent)
        self._is_over = threading.Event()
        # a daemon: it must not keep the process that has given up waiting for it
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, limit_s: float = 10.0) -> None:
        """The store has the whole journal, or a warning says where it is."""
        self._is_over.set()
        self._thread.join(limit_s)
        if not self._thread.is_alive() and self._content() == self._sent:
            with contextlib.suppress(OSError):
                os.remove(self._path)
                os.rmdir(self.folder)  # but for the report on a defect
        else:
            logger.warning("the journal could not be put to %s: %s", self._store.url, self._path)

    def _run(self) -> None:
        with contextlib.suppress(StoreError):  # not everybody may
            self._store.sweep(ABANDONED_S)
        has_complained = is_over = False
        while not is_over:
            is_over = self._is_over.wait(EVERY_S)
            if (content := self._content()) == self._sent:
                continue
            try:
                self._store.put_bytes(FILE_NAME, content)
                self._sent = content
            except Exception as error:
                if not has_complained:  # once: who is away stays away
                    logger.warning("the journal is late: %s", error)
                has_complained = True

    def _content(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""
