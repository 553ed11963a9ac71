"""Through a passage, fairseq leaves in a store what it would leave in a folder."""

import itertools
import os
from pathlib import Path

import pytest
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager

from fairseq_ray_plugin.checkpoints.folder import FolderStore
from fairseq_ray_plugin.checkpoints.passage import Passage
from fairseq_ray_plugin.checkpoints.published import fetch, published
from fairseq_ray_plugin.checkpoints.stores import StoreError, Unsupported


class Trainer:
    """What save_checkpoint asks of fairseq's, and its way of writing."""

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    always_call_state_dict_during_save_checkpoint = False
    checkpoint_suffix = ""

    def __init__(self, updates):
        self.updates = updates

    def consolidate_optimizer(self):
        pass

    def get_num_updates(self):
        return self.updates

    def save_checkpoint(self, filename, extra_state):
        Path(filename + ".tmp").write_text(f"state after {self.updates:03} updates")
        os.rename(filename + ".tmp", filename)


class Epoch:
    def __init__(self, epoch, ended):
        self.epoch, self._ended = epoch, ended

    def end_of_epoch(self):
        return self._ended

    def state_dict(self):
        return {"epoch": self.epoch}


LOSSES = itertools.cycle([4.0, 3.5, 3.7, 3.2, 3.2, 3.6, None, 3.1])
SAVES = [
    (updates, (updates + 9) // 10, updates % 10 == 0, loss)
    for updates, loss in zip(range(2, 62, 2), LOSSES, strict=False)
]
"""(updates, epoch, whether it has ended, validation loss)"""

OPTIONS = [
    {},
    {"keep_interval_updates": 2},
    {"keep_interval_updates": 2, "keep_interval_updates_pattern": 8},
    {"keep_last_epochs": 2},
    {"keep_best_checkpoints": 3},
    {"keep_best_checkpoints": 2, "maximize_best_checkpoint_metric": True},
    {"keep_interval_updates": 1, "keep_last_epochs": 1, "keep_best_checkpoints": 1},
    {"no_epoch_checkpoints": True},
    {"no_last_checkpoints": True, "keep_last_epochs": 1},
    {"save_interval": 2, "save_interval_updates": 0},
]


@pytest.fixture(autouse=True)
def best():
    yield
    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)


def save(folder, options, saves, around=lambda: None):
    settings = {"save_interval_updates": 2, **options}
    cfg = CheckpointConfig(save_dir=str(folder), **settings)
    for updates, epoch, ended, loss in saves:
        around()
        checkpoint_utils.save_checkpoint(cfg, Trainer(updates), Epoch(epoch, ended), loss)
        around()


def contents(folder):
    return {path.name: path.read_text() for path in Path(folder).glob("*.pt")}


@pytest.mark.parametrize("copies", ["copied", "linked"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_store_has_what_the_folder_would_have(options, copies, tmp_path, monkeypatch):
    save(tmp_path / "plain", options, SAVES)
    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)

    store = FolderStore(str(tmp_path / "store"))
    sizes = []
    for life, saves in enumerate((SAVES[:13], SAVES[13:])):  # the second on another machine
        passage = Passage(store, str(tmp_path / f"passage_{life}"))
        passage.fill()
        if copies == "linked":
            link = lambda source, target, overwrite, p=passage: p.link(source, target) or True  # noqa: E731
            monkeypatch.setattr(PathManager, "copy", staticmethod(link))

        def flush(passage=passage, folder=tmp_path / f"passage_{life}"):
            files = {path.stat().st_ino: path.stat().st_size for path in folder.iterdir()}
            sizes.append(sum(files.values()))
            passage.flush()
            assert 0 == passage.waiting == sum(path.stat().st_size for path in folder.iterdir())

        save(tmp_path / f"passage_{life}", options, saves, flush)

    assert contents(tmp_path / "plain") == contents(store.url)
    names = [one.name for one in published(store)]
    assert sorted(contents(tmp_path / "plain")) == names, "each has a manifest, none is left over"
    if copies == "linked":
        assert len("state after 002 updates") == max(sizes), "one state on the disk, ever"


class Counted(FolderStore):
    """Says what was sent and what was copied."""

    def __init__(self, folder):
        super().__init__(folder)
        self.sent, self.copied, self.fails = [], [], None

    def put(self, local_path, name, crc32=None):
        if name == self.fails:
            raise StoreError("no room")
        self.sent.append(name)
        super().put(local_path, name, crc32)

    def copy(self, source, target):
        if self.copied is None:
            raise Unsupported("it copies nothing")
        self.copied.append((source, target))
        FolderStore(self.url).put(self._path(source), target)


@pytest.fixture
def counted(tmp_path):
    return Counted(str(tmp_path / "store"))


def new_passage(store, tmp_path):
    passage = Passage(
        store, str(tmp_path / "passage"), lambda path: {"told": Path(path).read_text()}
    )
    passage.fill()
    return passage


def test_a_state_goes_over_the_network_once(counted, tmp_path):
    passage = new_passage(counted, tmp_path)
    save(tmp_path / "passage", {}, [(10, 1, True, 3.0)], passage.flush)
    assert ["checkpoint1.pt"] == counted.sent
    assert {"checkpoint_best.pt", "checkpoint_last.pt"} == {target for _, target in counted.copied}
    (facts,) = {one.facts["told"] for one in published(counted)}
    assert "state after 010 updates" == facts


def test_where_a_store_copies_nothing_it_is_sent_for_each_name(counted, tmp_path):
    counted.copied = None
    passage = new_passage(counted, tmp_path)
    save(tmp_path / "passage", {}, [(10, 1, True, 3.0)], passage.flush)
    assert 3 == len(counted.sent) == len(published(counted))


def test_what_could_not_be_sent_is_sent_later_and_nothing_is_removed_before(counted, tmp_path):
    options = {"keep_interval_updates": 1, "no_last_checkpoints": True}
    passage = new_passage(counted, tmp_path)
    save(tmp_path / "passage", options, [(2, 1, False, None)], passage.flush)
    counted.fails = "checkpoint_1_4.pt"
    save(tmp_path / "passage", options, [(4, 1, False, None)])
    with pytest.raises(StoreError, match="no room"):
        passage.flush()
    assert 1 == passage.waiting
    assert ["checkpoint_1_2.pt"] == [one.name for one in published(counted)]
    counted.fails = None
    passage.flush()
    assert ["checkpoint_1_4.pt"] == [one.name for one in published(counted)]
    assert "state after 004 updates" == fetch(counted, "checkpoint_1_4.pt", str(tmp_path))["told"]


def test_what_others_put_there_meanwhile_stays(counted, tmp_path):
    passage = new_passage(counted, tmp_path)
    counted.put(__file__, "checkpoint_9_99.pt")
    counted.put(__file__, "dictionary.txt")
    save(tmp_path / "passage", {"keep_interval_updates": 1}, SAVES[:3], passage.flush)
    assert {"checkpoint_9_99.pt", "dictionary.txt"} < {entry.name for entry in counted.list()}


def test_what_an_earlier_run_left_in_the_folder_is_not_taken_for_new(counted, tmp_path):
    passage = new_passage(counted, tmp_path)
    save(tmp_path / "passage", {}, [(2, 1, False, None)])
    (tmp_path / "passage" / "checkpoint_1_4.pt.tmp").write_text("half")
    passage = new_passage(counted, tmp_path)
    assert [] == os.listdir(tmp_path / "passage")
    assert 0 == passage.waiting
    passage.flush()
    assert [] == list(counted.list())
