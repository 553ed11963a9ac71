"""The journal of a run into a store is there, too, and the store stops nobody."""

import os
import threading

import pytest

from fairseq_ray_plugin.checkpoints import journal_copy
from fairseq_ray_plugin.checkpoints.folder import FolderStore
from fairseq_ray_plugin.checkpoints.journal_copy import JournalCopy
from fairseq_ray_plugin.checkpoints.stores import StoreError, Unreachable
from fairseq_ray_plugin.report.journal import FILE_NAME, Journal, read

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(tmp_path):
    return FolderStore(str(tmp_path / "store"))


def events(tmp_path):
    return read(str(tmp_path / "store" / FILE_NAME))


def test_it_goes_on_where_the_last_one_ended_and_leaves_nothing_behind(tmp_path, store):
    for number in (1, 2):
        copy = JournalCopy(store)
        Journal(copy.folder).write({"number": number})
        copy.close()
        assert not os.path.exists(copy.folder)
    assert [{"number": 1, "run": ""}, {"number": 2, "run": ""}] == events(tmp_path)


def test_what_is_new_is_there_soon(tmp_path, store, monkeypatch):
    monkeypatch.setattr(journal_copy, "EVERY_S", 0.01)
    is_there = threading.Event()
    put = store.put_bytes
    monkeypatch.setattr(store, "put_bytes", lambda *args: (put(*args), is_there.set()))
    copy = JournalCopy(store)
    Journal(copy.folder).write({"number": 1})
    assert is_there.wait(10) and [{"number": 1, "run": ""}] == events(tmp_path)
    copy.close()


def test_a_store_that_is_away_is_said_once_and_the_lines_come_later(
    tmp_path, store, monkeypatch, caplog
):
    monkeypatch.setattr(journal_copy, "EVERY_S", 0.01)
    tries = threading.Semaphore(0)
    put = store.put_bytes

    def away(*args):
        tries.release()
        raise Unreachable("nobody answers")

    monkeypatch.setattr(store, "put_bytes", away)
    copy = JournalCopy(store)
    Journal(copy.folder).write({"number": 1})
    for _ in range(3):
        assert tries.acquire(timeout=10)
    monkeypatch.setattr(store, "put_bytes", put)
    copy.close()
    assert [{"number": 1, "run": ""}] == events(tmp_path)
    assert 1 == caplog.text.count("nobody answers")


def test_one_that_never_got_there_is_kept_and_it_is_said_where(store, monkeypatch, caplog):
    begun = threading.Event()
    monkeypatch.setattr(store, "put_bytes", lambda *args: begun.wait())
    copy = JournalCopy(store)
    Journal(copy.folder).write({"number": 1})
    copy.close(limit_s=0.05)
    begun.set()
    path = os.path.join(copy.folder, FILE_NAME)
    assert path in caplog.text and [{"number": 1, "run": ""}] == read(path)


def test_a_store_that_cannot_be_read_is_refused(store, monkeypatch):
    def refuse(name):
        raise StoreError("denied")

    monkeypatch.setattr(store, "get_bytes", refuse)
    with pytest.raises(StoreError, match="denied"):
        JournalCopy(store)
