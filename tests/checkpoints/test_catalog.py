"""The newest whole checkpoint of a training is found, whatever it is called."""

import os
import time

import pytest
import torch
from states import state, write_ours, write_stock

from fairseq_ray_plugin.checkpoints import catalog, contents, table


@pytest.fixture(params=[write_stock, write_ours], ids=["stock", "ours"])
def write(request, tmp_path):
    return lambda name, **options: request.param(tmp_path / name, state(**options))


def newest(folder, belongs=lambda summary: True, **options):
    path = catalog.newest(catalog.Folder(str(folder)), belongs, **options)
    return path and os.path.basename(path)


def damage(path):
    """A bit flips in the first tensor."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_most_updates_count_and_not_the_name_or_the_time(tmp_path, write):
    write("checkpoint_1_30.pt", updates=30)
    write("checkpoint_last.pt", updates=20)
    write("mine.pt", updates=40)
    os.utime(tmp_path / "mine.pt", (0, 0))
    assert "mine.pt" == newest(tmp_path)
    (tmp_path / "mine.pt").unlink()
    assert "checkpoint_1_30.pt" == newest(tmp_path)


def test_of_several_after_as_many_updates_it_is_the_last_checkpoint(tmp_path, write, caplog):
    for name in ("checkpoint1.pt", "checkpoint_best.pt", "checkpoint_last.pt", "x.pt"):
        write(name)
    assert "checkpoint_last.pt" == newest(tmp_path)
    assert "" == caplog.text
    (tmp_path / "checkpoint_last.pt").unlink()
    os.utime(tmp_path / "checkpoint_best.pt", (2**31, 2**31))
    assert "checkpoint_best.pt" == newest(tmp_path)
    assert "going on from" in caplog.text and "after update 10" in caplog.text


def test_of_damaged_ones_there_is_a_warning_each_and_the_next_one_serves(tmp_path, write, caplog):
    for updates in (10, 20, 30):
        write(f"checkpoint_1_{updates}.pt", updates=updates)
    last = write("checkpoint_last.pt", updates=30)
    damage(last)
    cut = tmp_path / "checkpoint_1_30.pt"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "checkpoint_1_20.pt" == newest(tmp_path)
    warnings = [record.message for record in caplog.records if "is damaged: " in record.message]
    assert 2 == len(warnings)
    assert any(f"{last} is damaged: record" in warning for warning in warnings)
    assert any(f"{cut} is damaged: it is cut short" in warning for warning in warnings)


def test_where_all_are_damaged_it_is_refused_in_a_line_that_names_them(tmp_path, write):
    for name in ("checkpoint_1_10.pt", "checkpoint_last.pt"):
        damage(write(name))
    with pytest.raises(catalog.NoneWhole) as refusal:
        newest(tmp_path)
    assert "checkpoint_1_10.pt (" in str(refusal.value)
    assert "checkpoint_last.pt (" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_checkpoint_is_never_taken_for_one(tmp_path, write):
    torch.save({"embeddings": torch.ones(3)}, tmp_path / "embeddings.pt")
    crash = state(updates=99)
    del crash["extra_state"]["train_iterator"]
    torch.save(crash, tmp_path / "crash.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    assert newest(tmp_path) is None
    write("checkpoint_1_10.pt")
    assert "checkpoint_1_10.pt" == newest(tmp_path)


def test_a_folder_that_is_not_there_has_none(tmp_path):
    assert newest(tmp_path / "save") is None


def test_others_are_left_out_but_not_the_last_one(tmp_path, write):
    write("pretrained.pt", updates=500, width=16)
    write("checkpoint_1_10.pt")
    wide = lambda summary: summary.shapes["layers.0.weight"] == (32, 32)  # noqa: E731
    assert "checkpoint_1_10.pt" == newest(tmp_path, wide)
    write("checkpoint_last.pt", updates=20, width=16)
    assert "checkpoint_last.pt" == newest(tmp_path, wide), "fairseq says what is wrong with it"


def test_another_training_in_the_folder_does_not_hide_this_one(tmp_path, write, caplog):
    write("checkpoint_last_other.pt", updates=500, width=16, training="other")
    wide = lambda summary: summary.shapes["layers.0.weight"] == (32, 32)  # noqa: E731
    assert newest(tmp_path, wide) is None
    assert "of another training are in" in caplog.text
    assert "checkpoint_last_other.pt" in caplog.text
    os.utime(write("checkpoint_1_10.pt"), (0, 0))
    assert "checkpoint_1_10.pt" == newest(tmp_path, wide)


def test_what_a_training_before_it_was_begun_anew_has_left_is_not_gone_on_from(tmp_path, write):
    write("checkpoint_9_900.pt", updates=900, training="before")
    write("checkpoint_1_50.pt", updates=50, training="now")
    last = write("checkpoint_last.pt", updates=40, training="now")
    assert "checkpoint_1_50.pt" == newest(tmp_path)
    damage(last)
    os.utime(tmp_path / "checkpoint_9_900.pt", (0, 0))
    assert "checkpoint_1_50.pt" == newest(tmp_path), "the latest tells"


def test_stock_fairseqs_checkpoints_are_told_by_when_they_were_written(tmp_path):
    def write(name, updates, training, written):
        content = state(updates=updates, training=training)
        path = (write_ours if training else write_stock)(tmp_path / name, content)
        os.utime(path, (written, written))
        return path

    write("checkpoint_9_900.pt", 900, None, 1)
    ours = write("checkpoint_1_50.pt", 50, "now", 2)
    last = write("checkpoint_last.pt", 60, "now", 3)
    assert "checkpoint_last.pt" == newest(tmp_path), "it was begun anew"
    write("checkpoint_1_70.pt", 70, None, 4)
    assert "checkpoint_1_70.pt" == newest(tmp_path), "stock went on from it"
    for name, updates in (("checkpoint_1_40.pt", 40), ("checkpoint_1_70.pt", 70)):
        write(name, updates, None, 1)
    damage(last)
    damage(ours)
    assert "checkpoint_1_40.pt" == newest(tmp_path), "it went on from stock's"


def test_a_last_checkpoint_that_cannot_be_looked_into_is_left_to_fairseq(tmp_path, write):
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state(), tmp_path / "checkpoint_last.pt", **old)
    assert "checkpoint_last.pt" == newest(tmp_path)
    write("checkpoint_1_10.pt")
    assert "checkpoint_1_10.pt" == newest(tmp_path)


def test_the_last_one_may_have_another_name(tmp_path, write):
    write("checkpoint_last_mine.pt")
    write("checkpoint_best_mine.pt")
    assert "checkpoint_last_mine.pt" == newest(tmp_path, last="checkpoint_last_mine.pt")


def test_a_file_that_cannot_be_read_is_a_line_and_the_next_one_serves(
    tmp_path, write, caplog, monkeypatch
):
    write("checkpoint_1_10.pt")
    bad = str(write("checkpoint_1_20.pt", updates=20))
    facts = catalog.facts

    def fail(path):
        if path == bad:
            raise OSError(5, "Input/output error", path)
        return facts(path)

    monkeypatch.setattr(catalog, "facts", fail)
    assert "checkpoint_1_10.pt" == newest(tmp_path)
    assert f"{bad} is damaged: Input/output error" in caplog.text


def test_of_a_thousand_only_the_candidate_is_read(tmp_path, monkeypatch):
    source = write_ours(tmp_path / "checkpoint_1_0.pt", state(width=8))
    for number in range(1, 1000):
        path = tmp_path / f"checkpoint_1_{number}.pt"
        os.link(source, path)
        catalog.manifests.copy(str(source), str(path))
    looked, verified = [], []
    summary, verify = contents.summary, catalog.verify
    monkeypatch.setattr(contents, "summary", lambda p: (looked.append(p), summary(p))[1])
    monkeypatch.setattr(catalog, "verify", lambda p: (verified.append(p), verify(p)))
    begin = time.monotonic()
    newest(tmp_path)
    assert time.monotonic() - begin < 5
    assert 1 == len(verified) and 2 >= len(looked)


def test_the_table_says_what_is_there_and_what_is_damaged(tmp_path, write):
    write("checkpoint_1_10.pt")
    damage(write("checkpoint_last.pt", updates=20))
    (tmp_path / "checkpoint_best.pt").write_bytes(b"PK")
    torch.save({}, tmp_path / "embeddings.pt")
    torch.save(state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    rows = {row.entry.name: row for row in table.rows(catalog.Folder(str(tmp_path)))}
    assert {"checkpoint_1_10.pt", "checkpoint_last.pt", "checkpoint_best.pt", "old.pt"} == set(rows)
    heading, *lines = table.lines([*rows.values()])
    assert heading.split() == [*table.COLUMNS]
    said = {line.split()[0]: line for line in lines}
    _, updates, epoch, _, workers, loss, *_, whole = said["checkpoint_1_10.pt"].split()
    assert ("10", "3", "2", "2.5", "whole") == (updates, epoch, workers, loss, whole)
    assert "damaged: record" in said["checkpoint_last.pt"]
    assert "damaged: it is cut short" in said["checkpoint_best.pt"]
    assert "cannot be looked into" in said["old.pt"]
    assert rows["checkpoint_last.pt"].damage and not rows["old.pt"].damage
