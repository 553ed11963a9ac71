"""A manifest is believed as long as its checkpoint is the one that it was written of."""

import json
import os
import shutil

import pytest
import torch
from states import state, write_ours, write_stock

from fairseq_ray_plugin.checkpoints import archive, catalog, contents, files, manifests, sums


def names(folder):
    return sorted(os.listdir(folder / "manifests"))


def test_a_manifest_tells_what_was_written(tmp_path):
    path = write_ours(tmp_path / "checkpoint_last.pt", state(updates=7))
    manifest = manifests.read(str(path))
    assert sums.whole_file(str(path)) == manifest.file
    assert path.stat().st_size == manifest.file.size
    assert (7, 3, 2.5, 2, "t") == (
        *(manifest.facts.updates, manifest.facts.epoch, manifest.facts.loss),
        *(manifest.facts.world_size, manifest.facts.training),
    )
    written = json.loads((tmp_path / "manifests" / "checkpoint_last.pt.json").read_text())
    assert {"size", "crc32", "updates", "epoch", "loss", "world_size", "time"} < set(written)


def test_of_a_file_that_was_replaced_it_says_nothing(tmp_path):
    path = write_ours(tmp_path / "checkpoint_last.pt", state(updates=10))
    size = path.stat().st_size
    write_stock(path, state(updates=20))
    assert size == path.stat().st_size, "which does not tell them apart"
    assert manifests.read(str(path)) is None
    assert 20 == catalog.facts(str(path)).updates
    catalog.verify(str(path))


def test_a_manifest_that_is_damaged_condemns_no_checkpoint(tmp_path):
    path = write_ours(tmp_path / "checkpoint_last.pt", state())
    place = tmp_path / "manifests" / "checkpoint_last.pt.json"
    text = place.read_bytes()
    for number in range(len(text)):
        place.write_bytes(text[:number] + bytes([text[number] ^ 1]) + text[number + 1 :])
        manifest = manifests.read(str(path))
        assert manifest is None or manifest.facts.updates == 10
        catalog.verify(str(path))
    for text in (b"", b"{}", b"[]", b"null", b"\xff"):
        place.write_bytes(text)
        assert manifests.read(str(path)) is None


def test_the_manifest_is_what_is_believed(tmp_path, monkeypatch):
    """It tells of bytes that torch does not look at, too, and no file is looked into for facts."""
    path = write_ours(tmp_path / "checkpoint_last.pt", state())
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # the time in the first record's header
    path.write_bytes(data)
    archive.check(str(path))
    with pytest.raises(sums.Damaged):
        catalog.verify(str(path))
    monkeypatch.setattr(contents, "summary", None)
    assert 10 == catalog.facts(str(path)).updates


def test_copies_have_it_too_and_those_of_files_that_have_gone_go(tmp_path):
    first = write_ours(tmp_path / "checkpoint_1_10.pt", state())
    last = tmp_path / "checkpoint_last.pt"
    shutil.copyfile(first, last)
    manifests.copy(str(first), str(last))
    assert manifests.read(str(first)) == manifests.read(str(last))
    first.unlink()
    write_ours(tmp_path / "checkpoint_1_20.pt", state(updates=20))
    assert ["checkpoint_1_20.pt.json", "checkpoint_last.pt.json"] == names(tmp_path)
    manifests.copy(str(first), str(tmp_path / "checkpoint_best.pt"))
    assert 2 == len(names(tmp_path)), "what has none cannot pass it on"


def test_where_none_can_be_written_there_is_a_warning(tmp_path, caplog):
    (tmp_path / "manifests").write_text("a file")
    write_ours(tmp_path / "checkpoint_last.pt", state())
    assert "no manifest of" in caplog.text and "checkpoint_last.pt" in caplog.text


def test_the_fingerprint_of_what_is_written_is_that_of_the_file(tmp_path):
    path = tmp_path / "any"
    for parts in ([], [b"x"], [b"x" * 5000, b"y" * 3], [b"x" * 4096], [memoryview(b"abc"), b"d"]):
        with open(path, "wb") as file:
            summing = sums.Summing(file)
            for part in parts:
                summing.write(part)
        assert sums.whole_file(str(path)) == summing.fingerprint
        assert sums.end_of_file(str(path)) == (path.stat().st_size, summing.fingerprint.tail)


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(paths), replace(*paths)))
    path = str(tmp_path / "any")
    with files.whole(path, durable=True) as partial:
        torch.save({}, partial)
    assert [partial, (partial, path), str(tmp_path)] == done
    with files.whole(path) as partial:
        torch.save({}, partial)
    assert (partial, path) == done[-1] and 4 == len(done), "and what lies in memory is not"
