"""Loader processes have what they need, and no more."""

import contextlib
import os
import sys
import types

import pytest
import torch
from torch.utils.data import DataLoader, dataloader
from torch.utils.data._utils import worker as loader_process

from fairseq_ray_plugin.training import loaders, pages

pytestmark = pytest.mark.timeout(60)


def nothing_else():
    return contextlib.nullcontext([])


def is_mapped(address):
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


class Data(torch.utils.data.Dataset):
    """Whether the middle of each of some tensors is there, where the data is read."""

    def __init__(self, tensors):
        self.addresses = [t.data_ptr() + t.nbytes // 2 for t in tensors]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.tensor([is_mapped(address) for address in self.addresses])


@pytest.fixture
def trainer(monkeypatch):
    """One that has made an update."""
    parameter = torch.nn.Parameter(torch.ones(1_000_000))
    adam = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones(1_000_000)
    adam.step()
    optimizer = types.SimpleNamespace(optimizer=adam)
    start = dataloader._MultiProcessingDataLoaderIter.__init__
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", start)
    return types.SimpleNamespace(_optimizer=optimizer, optimizer=optimizer, parameter=parameter)


def test_a_loader_process_has_the_model_but_not_what_is_the_optimizers(trainer):
    (state,) = trainer.optimizer.optimizer.state.values()
    tensors = [trainer.parameter, state["exp_avg"], state["exp_avg_sq"], trainer.parameter.grad]
    loader = DataLoader(Data(tensors), num_workers=1, multiprocessing_context="fork")
    assert [[[True, True, True, True]]] == [there.tolist() for there in loader]
    loaders.keep_optimizer_from(trainer, nothing_else)
    assert [[[True, False, False, False]]] == [there.tolist() for there in loader]


def test_a_loader_process_does_not_have_what_nobody_uses(trainer):
    spare = torch.ones(1_000_000)
    is_forked = []

    @contextlib.contextmanager
    def unused():
        yield pages.of([spare])
        is_forked.append(True)

    loaders.keep_optimizer_from(trainer, unused)
    loader = DataLoader(Data([spare]), num_workers=1, multiprocessing_context="fork")
    assert [[[False]]] == [there.tolist() for there in loader]
    assert [True] == is_forked and is_mapped(spare.data_ptr() + 2_000_000)


def test_a_process_that_others_fork_has_everything(trainer):
    (state,) = trainer.optimizer.optimizer.state.values()
    loaders.keep_optimizer_from(trainer, nothing_else)
    loader = DataLoader(Data([]), num_workers=1, multiprocessing_context="fork")
    list(loader)
    if (child := os.fork()) == 0:
        os._exit(int(is_mapped(state["exp_avg"].data_ptr() + 2_000_000)))
    assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_trainer_without_an_optimizer_yet_starts_loaders_as_ever(trainer):
    loaders.keep_optimizer_from(types.SimpleNamespace(_optimizer=None), nothing_else)
    loader = DataLoader(Data([trainer.parameter]), num_workers=1, multiprocessing_context="fork")
    assert [[[True]]] == [there.tolist() for there in loader]


class Cut(torch.utils.data.Dataset):
    """Read by processes in which a thread meets with errors."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        for error in (ConnectionResetError("cut"), EOFError("over"), ValueError("told")):
            sys.excepthook(type(error), error, None)
        return index


def test_a_rank_that_dies_is_not_told_by_its_loaders(monkeypatch, capfd):
    monkeypatch.setattr(loader_process, "_worker_loop", loader_process._worker_loop)
    loaders.silence_orphans()
    list(DataLoader(Cut(), num_workers=1, multiprocessing_context="fork"))
    assert "ValueError: told\n" == capfd.readouterr().err
