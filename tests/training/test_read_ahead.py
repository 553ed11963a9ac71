"""Data that a rank loads before it knows what it goes on from."""

import random

import numpy as np
import pytest
import torch

from fairseq_ray_plugin.training.data_hook import DataHistory
from fairseq_ray_plugin.training.train_iterator import LOADED_IN


class Task:
    """Its data draws when it is loaded."""

    def __init__(self, is_sharded=False):
        self.datasets, self.is_sharded, self.loads = {}, is_sharded, []

    def has_sharded_data(self, split):
        return self.is_sharded

    def load_dataset(self, split, epoch, **options):
        self.loads.append(epoch)
        draws = random.random(), float(np.random.rand()), float(torch.rand(()))
        self.datasets["train"] = (epoch, draws)


class Trainer:
    """What of fairseq's is needed, patched as in a rank."""

    def __init__(self, **options):
        self.task, self.history = Task(**options), DataHistory()
        self.cfg = self.dataset = self
        self.train_subset, self.tpu = "train", False

    def get_train_iterator(self, epoch, load_dataset=True):
        def make(trainer, epoch, load_dataset):
            if load_dataset:
                self.task.load_dataset("train", epoch)
            return epoch, self.task.datasets["train"]

        return self.history.get_iterator(make, self, epoch, load_dataset)


def begin(loaded_in=1, epoch=3, is_ahead=False, **options):
    """What a restart in an epoch has, what it draws next, and what it loaded."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    trainer = Trainer(**options)
    if is_ahead:
        trainer.history.read_ahead(trainer)
    trainer.history.loaded({"train_iterator": {LOADED_IN: loaded_in}})
    iterator = trainer.get_train_iterator(epoch)
    draws = random.random(), np.random.rand(), torch.rand(())
    return (iterator, trainer.history.loaded_in, draws), trainer.task.loads


@pytest.mark.parametrize(
    ("where", "loads"),
    [({}, [1]), ({"epoch": 1}, [1]), ({"loaded_in": 2}, [1, 2]), ({"is_sharded": True}, [1])],
)
def test_it_is_the_same_data_as_ever_and_so_is_all_that_is_drawn_later(where, loads):
    expected, _ = begin(**where)
    found, loaded = begin(**where, is_ahead=True)
    assert expected == found
    assert loads == loaded, "once, but where another epoch's was wanted"


def test_it_serves_once():
    trainer = Trainer()
    trainer.history.read_ahead(trainer)
    trainer.history.loaded(None)
    trainer.get_train_iterator(1)
    trainer.get_train_iterator(1)
    assert [1, 1] == trainer.task.loads


def test_data_that_cannot_be_loaded_raises_then():
    trainer = Trainer()
    trainer.task.load_dataset = lambda *split, **options: open("/nowhere/dict.txt")
    with pytest.raises(FileNotFoundError):
        trainer.history.read_ahead(trainer)
