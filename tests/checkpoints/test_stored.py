"""The checkpoints in a store are looked at as those in a folder, and few are fetched."""

import dataclasses
import os

import pytest
from states import state, write_ours, write_stock

from fairseq_ray_plugin.checkpoints import (
    catalog,
    claim,
    claim_places,
    contents,
    published,
    stores,
    table,
)
from fairseq_ray_plugin.checkpoints.claim_places import InStore
from fairseq_ray_plugin.checkpoints.stored import Stored, facts_of

LAST = "checkpoint_last.pt"


@pytest.fixture
def place(tmp_path):
    return Stored(f"file://{tmp_path}/store", str(tmp_path / "fetched"))


@pytest.fixture
def put(tmp_path):
    """A checkpoint is in the store; returns its path there."""
    store = stores.open_store(str(tmp_path / "store"))

    def put(name, updates, **options):
        path = str(write_ours(tmp_path / name, state(updates=updates, **options)))
        facts = contents.summary(path)
        names = ("updates", "epoch", "loss", "world_size", "training")
        published.publish(store, path, name, {key: getattr(facts, key) for key in names})
        return tmp_path / "store" / name

    return put


def newest(place, belongs=lambda summary: True):
    path = catalog.newest(place, belongs)
    return path and os.path.basename(path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_is_fetched_and_no_other(tmp_path, place, put):
    for updates in (10, 30, 20):
        put(f"checkpoint_1_{updates}.pt", updates)
    put(LAST, 20)
    assert "checkpoint_1_30.pt" == newest(place)
    assert ["checkpoint_1_30.pt"] == os.listdir(tmp_path / "fetched")
    place.fetch(LAST)
    assert [LAST] == os.listdir(tmp_path / "fetched"), "one at a time"


def test_of_damaged_ones_there_is_a_warning_and_the_next_one_serves(tmp_path, place, put, caplog):
    put("checkpoint_1_10.pt", 10)
    flip(put("checkpoint_1_20.pt", 20))
    flip(put(LAST, 20))
    assert "checkpoint_1_10.pt" == newest(place)
    assert f"file://{tmp_path}/store/{LAST} is damaged: " in caplog.text
    assert f"going on from file://{tmp_path}/store/checkpoint_1_10.pt" in caplog.text
    assert ["checkpoint_1_10.pt"] == os.listdir(tmp_path / "fetched")
    flip(tmp_path / "store" / "checkpoint_1_10.pt")
    again = Stored(f"file://{tmp_path}/store", str(tmp_path / "fetched"))
    with pytest.raises(catalog.NoneWhole, match=f"no whole checkpoint is in file://{tmp_path}"):
        newest(again)


def test_one_that_was_put_there_by_hand_counts_by_its_own_checksums(tmp_path, place, put):
    put(LAST, 10)
    path = write_stock(tmp_path / "store" / "checkpoint_1_20.pt", state(updates=20, training=None))
    assert "checkpoint_1_20.pt" == newest(place)
    flip(path)
    assert LAST == newest(Stored(place.name, str(tmp_path / "fetched")))


def test_what_is_another_trainings_is_passed_over(place, put):
    put(LAST, 10)
    put("checkpoint_1_20.pt", 20, training="other")
    assert LAST == newest(place)
    assert LAST == newest(place, lambda summary: False), "by its name"


def test_nothing_there_is_nothing_to_go_on_from(place):
    assert newest(place) is None


def test_a_store_that_is_away_says_nothing_of_a_checkpoint(tmp_path, place, put, monkeypatch):
    """Else training would go on from an older one."""
    put("checkpoint_1_10.pt", 10)
    put(LAST, 20)

    def away(name, path):
        raise stores.Unreachable("nobody answers")

    monkeypatch.setattr(place._store, "get", away)
    with pytest.raises(stores.Unreachable):
        newest(place)


def test_they_are_listed_whole_or_not(place, put):
    put("checkpoint_1_10.pt", 10)
    flip(put(LAST, 20))
    rows = table.rows(place)
    assert [("checkpoint_1_10.pt", 10, True), (LAST, 20, False)] == [
        (row.entry.name, row.facts.updates, row.damage is None) for row in rows
    ]


def test_a_manifest_that_says_too_little_or_nonsense_says_nothing():
    assert facts_of({}) is facts_of({"updates": "many", "epoch": 1}) is None
    assert 7 == facts_of({"updates": 7, "epoch": 1, "size": 3}).updates


def test_a_url_may_be_shown_without_what_is_secret_in_it():
    assert "ftp://host/run" == stores.shown("ftp://user:password@host/run/?token=x")
    assert "s3://bucket/run" == stores.shown("s3://bucket/run/") and "a/" == stores.shown("a/")


def test_the_same_damage_is_meant_by_both_words():
    from fairseq_ray_plugin.checkpoints import sums

    assert issubclass(stores.Damaged, sums.Damaged)


def test_on_every_store_a_run_holds_its_prefix_and_a_second_one_is_refused(store):
    place = InStore(store, claim_places.FOLDER)
    mine = claim.take(place, "s3://bucket/run")
    assert not place.create(f"{mine.number}.json", b"{}"), "there is one"
    other = claim.this_process()
    other = dataclasses.replace(other, pid=os.getppid(), started=claim._start_of(os.getppid()))
    place.replace("1.json", claim._written(other))
    with pytest.raises(claim.InUse, match="s3://bucket/run is in use by a run on"):
        claim.refuse_if_in_use(place, "s3://bucket/run")
    mine.release(10)
    second = claim.take(place, "s3://bucket/run")
    assert 2 == second.number
    second.release(10)
    assert ["2.json"] == place.names() and place.read("1.json") is None
