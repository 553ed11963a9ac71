"""What a rank's forward and backward take it alone, whatever it waits for."""

import threading
import time
import types

import pytest
import torch
import torch.distributed as dist

from fairseq_ray_plugin.training import own_time

WAIT_S = 0.3
FORWARD_S = 0.05


class Late(torch.nn.Linear):
    """A model whose forward takes its time."""

    def forward(self, x):
        time.sleep(FORWARD_S)
        return super().forward(x)


@pytest.fixture
def ddp():
    """A model whose gradients other ranks are late with, which backward waits for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(Late(8, 1))

    def wait_for_others(_, bucket):
        future = torch.futures.Future()
        threading.Timer(WAIT_S, future.set_result, (bucket.buffer(),)).start()
        return future

    model.register_comm_hook(None, wait_for_others)
    yield model
    dist.destroy_process_group()


def train(model, own, now=time.monotonic, loss_of=lambda loss: loss):
    """A mini-batch as fairseq's tasks train on it; returns how long it took in all."""

    def train_step(sample):
        loss = loss_of(model(sample).sum())
        optimizer.backward(loss)

    optimizer = types.SimpleNamespace(backward=lambda loss: (2 * loss).backward())
    task = types.SimpleNamespace(train_step=train_step)
    own_time.attach(own, task, optimizer, now)
    begin = time.monotonic()
    task.train_step(torch.ones(4, 8))
    return time.monotonic() - begin


def test_the_wait_for_other_ranks_within_backward_is_left_out(ddp):
    own = own_time.OwnTime()
    in_all = train(ddp, own)
    batches, seconds = own.take()
    assert 1 == batches and FORWARD_S <= seconds < in_all - WAIT_S / 2
    assert (0, 0.0) == own.take(), "each is told once"


def test_gradients_are_those_of_an_untimed_step():
    model = torch.nn.Linear(8, 1)
    train(model, own := own_time.OwnTime())
    assert torch.equal(torch.full((1, 8), 8.0), model.weight.grad)
    assert 1 == own.take()[0]


def test_a_task_that_calls_backward_itself_is_not_timed_and_trains():
    model, own = torch.nn.Linear(8, 1), own_time.OwnTime()
    task = types.SimpleNamespace(train_step=lambda sample: model(sample).sum().backward())
    own_time.attach(own, task, types.SimpleNamespace(backward=None), time.monotonic)
    task.train_step(torch.ones(4, 8))
    assert model.weight.grad is not None and (0, 0.0) == own.take()


class Event:
    """As torch.cuda.Event: it passes when the GPU comes to it."""

    def __init__(self, at):
        self.at, self.has_passed = at, False

    def query(self):
        return self.has_passed

    def elapsed_time(self, later):
        return later.at - self.at  # milliseconds


def test_on_a_gpu_nobody_waits_for_the_clock():
    events = [Event(at) for at in (0, 250, 1000, 1300)]
    there = iter(events)
    own, model = own_time.OwnTime(), torch.nn.Linear(8, 1)
    for _ in range(2):
        train(model, own, lambda: next(there))
    assert (0, 0.0) == own.take(), "the GPU has not come to it yet"
    events[0].has_passed = events[1].has_passed = True
    assert (1, 0.25) == own.take()
    events[3].has_passed = True
    assert (1, 0.3) == own.take()


def test_a_clock_that_fails_ends_no_training():
    model, own = torch.nn.Linear(8, 1), own_time.OwnTime()
    train(model, own, lambda: 1 // 0)
    assert torch.equal(torch.full((1, 8), 8.0), model.weight.grad) and (0, 0.0) == own.take()
