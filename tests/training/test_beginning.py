"""What happens before a generation's first update, without fairseq's loop."""

import logging
import time
import types

import pytest
from fairseq.data import Dictionary

from fairseq_ray_plugin.assignment import Assignment
from fairseq_ray_plugin.training import beginning
from fairseq_ray_plugin.training.beginning import Beginning
from fairseq_ray_plugin.training.gate import Gate
from fairseq_ray_plugin.training.refusal import Refused
from fairseq_ray_plugin.training.steps import Steps

MISSING = FileNotFoundError(2, "No such file or directory", "dict.txt")


def assignment(generation=1, rank=0, world_size=2, groups=None):
    return Assignment(
        generation=generation,
        rank=rank,
        world_size=world_size,
        restore=None,
        keeps_snapshots=False,
        master=("127.0.0.1", 0),
        groups=groups,
        restart_epoch=False,
        threads=1,
        user_dir=None,
        snapshot_folders=(),
        snapshot_updates=None,
    )


def open_gate():
    return Gate(None, False, Steps(), on_waiting=lambda: None)


def task_with(*words):
    dictionary = Dictionary()
    for word in words:
        dictionary.add_symbol(word)
    return types.SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


def test_what_another_try_cannot_change_is_refused_in_the_first_generation_alone():
    with pytest.raises(Refused, match="dict.txt: No such file"):
        with Beginning(assignment(), open_gate()).stage("reading"):
            raise MISSING
    with pytest.raises(FileNotFoundError):
        with Beginning(assignment(generation=2), open_gate()).stage("reading"):
            raise MISSING
    with pytest.raises(KeyError):
        with Beginning(assignment(), open_gate()).stage("reading"):
            raise KeyError("another thing")


@pytest.mark.parametrize("generation", [1, 2])
def test_what_takes_long_is_told_and_a_restart_is_otherwise_silent(generation, caplog, monkeypatch):
    monkeypatch.setattr(beginning, "TALK_S", 0.01)
    caplog.set_level(logging.INFO)
    start = Beginning(assignment(generation), open_gate())
    try:
        start.begin()
        logging.info("a thousand options")
        with start.stage("reading train data"):
            while "still reading train data" not in caplog.text:
                time.sleep(0.01)
        assert ("a thousand options" in caplog.text) == (generation == 1)
        start.end_of_silence()
        logging.info("begin training")
        assert "begin training" in caplog.text
    finally:
        start.end()
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("generation", "rank"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_node_with_other_words_is_named_and_later_left_out(generation, rank, monkeypatch):
    tasks = [task_with("a", "b"), task_with("b", "a")]

    def all_gather_object(everyone, mine):
        everyone[:] = [(beginning.fingerprint(task), f"host{n}") for n, task in enumerate(tasks)]
        assert everyone[rank][0] == mine[0]

    monkeypatch.setattr(beginning.dist, "all_gather_object", all_gather_object)
    start = Beginning(assignment(generation, rank), open_gate())
    text = r"data are not the same on all nodes: rank 1 \(on host1\) has others"
    if generation == 1:
        with pytest.raises(Refused, match=text):
            start.check_dictionaries(tasks[rank], "data")
    elif rank == 1:
        with pytest.raises(ValueError, match=text):
            start.check_dictionaries(tasks[rank], "data")
    else:
        start.check_dictionaries(tasks[rank], "data")  # it trains on
    tasks[1] = tasks[0]
    start.check_dictionaries(tasks[rank], "data")


def test_a_task_without_dictionaries_has_a_fingerprint():
    class Task:
        dicts = None

        @property
        def source_dictionary(self):
            raise NotImplementedError

    assert 0 == beginning.fingerprint(Task())


def test_an_update_that_is_longer_than_an_epoch_is_refused():
    cfg = types.SimpleNamespace(dataset=types.SimpleNamespace(batch_size=4, max_tokens=None))
    trainer, iterator = (
        types.SimpleNamespace(cfg=cfg),
        types.SimpleNamespace(frozen_batches=[0] * 9),
    )
    Beginning(assignment(groups=(9,)), open_gate()).check_group(trainer, iterator)
    with pytest.raises(Refused, match="--fix-batch-size makes 10 .* has 9: take 36 or less"):
        Beginning(assignment(groups=(10,)), open_gate()).check_group(trainer, iterator)
