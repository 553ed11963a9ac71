"""A state is the same on every rank, wherever its file is."""

import multiprocessing
import types

import pytest
import torch
import torch.distributed as dist
from fairseq.models import distributed_fairseq_model
from test_raw import same_bits, state

from fairseq_ray_plugin.training import raw, transfer

pytestmark = pytest.mark.timeout(60)

ON_CPU = torch.device("cpu")


def large_state():
    """Messages of every kind: one storage each, and many in one."""
    large = torch.randn(2 * transfer.LARGE // 4)
    small = [
        torch.randn(transfer.LARGE // 8) for _ in range(2 * transfer.MESSAGE // transfer.LARGE)
    ]
    return {**state(), "large": [large, large[5:]], "small": small}


def in_two_processes(rank_of, tmp_path):
    """What `rank_of(rank)` returns in each of two ranks of a process group."""
    context = multiprocessing.get_context("fork")
    results = [context.SimpleQueue() for _ in range(2)]

    def run(rank):
        torch.set_num_threads(1)
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        results[rank].put(rank_of(rank))

    processes = [context.Process(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert 0 == process.exitcode
    return [result.get() for result in results]


def test_a_state_is_received_bit_for_bit_with_what_is_shared_in_it(tmp_path):
    sent = large_state()

    def rank_of(rank):
        if rank == 0:
            transfer.send(sent, dist.group.WORLD, ON_CPU)
            return True
        received = transfer.receive(dist.group.WORLD, ON_CPU)
        first, rest = received["large"]
        return same_bits(sent, received) and first[5:].data_ptr() == rest.data_ptr()

    assert [True, True] == in_two_processes(rank_of, tmp_path)


def test_messages_are_few_and_large():
    sizes = dict(enumerate([transfer.LARGE, 0, *[1000] * 500, 5 * transfer.LARGE]))
    messages = list(transfer._messages(sizes))
    assert [1, 1, 500] == sorted(map(len, messages))


@pytest.mark.parametrize("all_have_it", [True, False])
def test_only_who_has_the_file_reads_it(all_have_it, tmp_path):
    path = str(tmp_path / "state.raw")
    expected = state()
    raw.write(expected, path)

    def rank_of(rank):
        trainer = types.SimpleNamespace(
            data_parallel_world_size=2,
            data_parallel_rank=rank,
            data_parallel_process_group=dist.group.WORLD,
            device=ON_CPU,
        )
        reads = []

        def read(path):
            reads.append(path)
            return raw.read(path, mapped=True)

        folders = (str(tmp_path),) if rank == 0 or all_have_it else ("/elsewhere",)
        got = transfer.load(path, read, trainer, folders)
        return same_bits(expected, got), len(reads)

    assert [(True, 1), (True, int(all_have_it))] == in_two_processes(rank_of, tmp_path)


class AlwaysSyncs:
    """torch 2.4's DDP, as far as what it takes."""

    def __init__(self, module):
        self.module = module


class SyncsIfAsked:
    def __init__(self, module, init_sync=True):
        self.module, self.init_sync = module, init_sync


@pytest.mark.parametrize(
    ("ddp", "asked"), [(AlwaysSyncs, {}), (SyncsIfAsked, {"init_sync": False})]
)
def test_the_first_sync_is_left_out_where_torch_can_do_without(ddp, asked, monkeypatch):
    monkeypatch.setattr(transfer, "DistributedDataParallel", ddp)
    monkeypatch.setattr(distributed_fairseq_model, "DistributedDataParallel", ddp)
    transfer.without_first_sync()
    made = distributed_fairseq_model.DistributedDataParallel(module="model")
    assert {"module": "model"} | asked == vars(made)
