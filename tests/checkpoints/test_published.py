"""A checkpoint in a store exists whole or not at all, whenever its writer dies."""

import json
import zlib

import pytest

from fairseq_ray_plugin.checkpoints.folder import FolderStore
from fairseq_ray_plugin.checkpoints.published import (
    fetch,
    publish,
    publish_copy,
    published,
    withdraw,
)
from fairseq_ray_plugin.checkpoints.stores import Damaged, Missing, StoreError

CHANGES = ("put", "put_bytes", "copy", "delete")


class Dies(Exception):
    """The writer is no more."""


class Mortal:
    """A store whose user dies before its nth change, and looks at it after each until then."""

    def __init__(self, store, changes, look=lambda: None):
        self._store, self._left, self._look = store, changes, look

    def __getattr__(self, name):
        verb = getattr(self._store, name)
        if name not in CHANGES:
            return verb

        def change(*args, **kwargs):
            if self._left == 0:
                raise Dies
            self._left -= 1
            verb(*args, **kwargs)
            self._look()

        return change


@pytest.fixture
def state(tmp_path):
    def make(update, size=1000):
        path = tmp_path / f"update_{update}"
        path.write_bytes(bytes([update]) * size)  # all of one size, as a training's are
        return str(path)

    return make


def content(store, name, tmp_path):
    facts = fetch(store, name, str(tmp_path / "got"))
    return facts["update"], (tmp_path / "got" / name).read_bytes()[0]


def test_a_checkpoint_is_its_file_and_a_manifest(store, state, tmp_path):
    facts = publish(store, state(7), "checkpoint_1_7.pt", {"update": 7, "loss": 2.5})
    crc32 = zlib.crc32(bytes([7]) * 1000)
    assert {"update": 7, "loss": 2.5, "size": 1000, "crc32": crc32} == facts
    assert facts == json.loads(store.get_bytes("manifests/checkpoint_1_7.pt.json"))
    publish_copy(store, "checkpoint_1_7.pt", "checkpoint_last.pt", facts)
    found = published(store)
    assert ["checkpoint_1_7.pt", "checkpoint_last.pt"] == [one.name for one in found]
    assert [facts, facts] == [one.facts for one in found]
    assert (7, 7) == content(store, "checkpoint_last.pt", tmp_path)
    withdraw(store, "checkpoint_1_7.pt")
    assert ["checkpoint_last.pt"] == [one.name for one in published(store)]
    with pytest.raises(Missing):
        fetch(store, "checkpoint_1_7.pt", str(tmp_path))


@pytest.mark.parametrize("way", ["published", "copied"])
def test_whenever_its_writer_dies_a_name_is_the_old_or_the_new_state(state, tmp_path, way):
    store = FolderStore(str(tmp_path / "store"))
    publish(store, state(1), "checkpoint_last.pt", {"update": 1})
    manifest = publish(store, state(2), "checkpoint_1_2.pt", {"update": 2})

    def save(store):
        if way == "copied":
            publish_copy(store, "checkpoint_1_2.pt", "checkpoint_last.pt", manifest)
        else:
            publish(store, state(2), "checkpoint_last.pt", {"update": 2})

    def seen():
        update, byte = content(store, "checkpoint_last.pt", tmp_path)
        (listed,) = (one for one in published(store) if one.name == "checkpoint_last.pt")
        assert update == byte == listed.facts["update"]
        return update

    story = []
    for changes in range(4):
        publish(store, state(1), "checkpoint_last.pt", {"update": 1})
        try:
            save(Mortal(store, changes, seen))
        except Dies:
            pass
        story.append(seen())
        # and its successor's, which may die as well
        try:
            publish(Mortal(store, 2, seen), state(3), "checkpoint_last.pt", {"update": 3})
        except Dies:
            pass
        assert 3 == seen()
    assert [1, 1, 2, 2] == story


def test_a_new_name_is_found_when_it_is_whole(state, tmp_path):
    store = FolderStore(str(tmp_path / "store"))
    found = []
    for changes in range(3):
        try:
            publish(Mortal(store, changes), state(1), "checkpoint_1_1.pt", {"update": 1})
        except Dies:
            pass
        found.append(len(published(store)))
    assert [0, 0, 1] == found
    left = []
    look = lambda: left.append((len(store.list("manifests")), len(store.list())))  # noqa: E731
    withdraw(Mortal(store, 2, look), "checkpoint_1_1.pt")
    assert [(0, 1), (0, 0)] == left, "who finds a manifest finds the object"


def test_puts_that_fail_again_and_again_make_no_manifest_grow(state, tmp_path):
    store = FolderStore(str(tmp_path / "store"))
    publish(store, state(1), "checkpoint_last.pt", {"update": 1})
    for _ in range(5):
        with pytest.raises(Dies):
            publish(Mortal(store, 1), state(2), "checkpoint_last.pt", {"update": 2})
    manifest = json.loads(store.get_bytes("manifests/checkpoint_last.pt.json"))
    assert [2] == [facts["update"] for facts in manifest["otherwise"]]


@pytest.mark.parametrize("size", [1000, 999])
def test_what_was_damaged_in_the_store_is_not_taken(store, state, tmp_path, size):
    publish(store, state(1), "checkpoint_last.pt", {"update": 1})
    store.put(state(2, size), "checkpoint_last.pt")
    with pytest.raises(Damaged, match=r"checkpoint_last\.pt is not what its manifest says"):
        fetch(store, "checkpoint_last.pt", str(tmp_path / "got"))
    assert [] == list((tmp_path / "got").iterdir())


def test_what_is_replaced_while_it_is_fetched_is_the_old_or_the_new_one(state, tmp_path):
    store = FolderStore(str(tmp_path / "store"))
    publish(store, state(1), "checkpoint_last.pt", {"update": 1})

    class Meanwhile(FolderStore):
        def get(self, name, local_path):
            if states:
                publish(store, states.pop(0), "checkpoint_last.pt", {"update": 2})
            return super().get(name, local_path)

    states = [state(2)]
    assert (2, 2) == content(Meanwhile(store.url), "checkpoint_last.pt", tmp_path)


def test_what_others_have_put_there_is_fetched_but_not_found(store, state, tmp_path):
    store.put(state(1), "checkpoint_last.pt")
    store.put_bytes("manifests/gone.pt.json", b"{}")
    store.put_bytes("manifests/broken.pt.json", b"no json")
    store.put(state(1), "broken.pt")
    assert [] == published(store)
    assert fetch(store, "checkpoint_last.pt", str(tmp_path / "got")) is None
    assert (tmp_path / "got" / "checkpoint_last.pt").stat().st_size == 1000


def test_a_state_that_cannot_be_put_leaves_the_old_one(state, tmp_path):
    store = FolderStore(str(tmp_path / "store"))
    publish(store, state(1), "checkpoint_last.pt", {"update": 1})

    class Full(FolderStore):
        def put(self, local_path, name, crc32=None):
            raise StoreError("no room")

    with pytest.raises(StoreError, match="no room"):
        publish(Full(store.url), state(2), "checkpoint_last.pt", {"update": 2})
    assert (1, 1) == content(store, "checkpoint_last.pt", tmp_path)
