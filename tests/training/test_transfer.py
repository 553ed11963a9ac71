"""A state is the same on every rank, wherever its file is."""

import copy
import multiprocessing
import types

import pytest
import torch
import torch.distributed as dist
from fairseq.models import distributed_fairseq_model
from test_raw import same_bits, state

from fairseq_ray_plugin.training import layout, raw, transfer

pytestmark = pytest.mark.timeout(60)

ON_CPU = torch.device("cpu")


def large_state(value=1.0):
    """Pieces of every kind: small storages, some in one piece, one in several."""
    large = torch.full((3 * layout.PIECE // 8,), value)
    return {**state(), "large": [large, large[5:]], "middle": [torch.randn(20000) for _ in "1234"]}


def in_processes(rank_of, tmp_path, world_size=2):
    """What `rank_of(rank)` returns in each rank of a process group."""
    context = multiprocessing.get_context("fork")
    results = [context.SimpleQueue() for _ in range(world_size)]

    def run(rank):
        torch.set_num_threads(1)
        store = dist.FileStore(str(tmp_path / "store"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        results[rank].put(rank_of(rank))

    processes = [
        context.Process(target=run, args=(rank,), daemon=True) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert 0 == process.exitcode
    return [result.get() for result in results]


def trainer_of(rank, world_size=2):
    return types.SimpleNamespace(
        data_parallel_world_size=world_size,
        data_parallel_rank=rank,
        data_parallel_process_group=dist.group.WORLD,
        device=ON_CPU,
    )


@pytest.fixture
def received(monkeypatch):
    """Bytes that this process has received."""
    numbers = []
    irecv = dist.irecv

    def counted(tensor, *args):
        numbers.append(tensor.numel())
        return irecv(tensor, *args)

    monkeypatch.setattr(dist, "irecv", counted)
    return numbers


def test_a_checkpoint_is_received_bit_for_bit_with_what_is_shared_in_it(tmp_path):
    sent = large_state()

    def rank_of(rank):
        got = transfer.load("checkpoint.pt", None, lambda path: sent, trainer_of(rank, 3), ())
        first, rest = got["large"]
        return same_bits(sent, got) and first[5:].data_ptr() == rest.data_ptr()

    assert [True] * 3 == in_processes(rank_of, tmp_path, 3)


@pytest.mark.parametrize("way", ["along_chains", "by_broadcast"])
def test_only_what_a_rank_has_not_nearby_is_sent_to_it(way, tmp_path, received, monkeypatch):
    """Of five ranks the second is on rank 0's node, the third has a file that differs in a few
    bytes, the fourth one of another state, and the last none."""
    monkeypatch.setattr(transfer._Move, "_along_chains", getattr(transfer._Move, f"_{way}"))
    expected = large_state()
    other = {**copy.deepcopy(expected), "nan": torch.ones(3)}
    other["large"][0][-1] += 1e-6
    files = [tmp_path / str(number) / "state.raw" for number in range(3)]
    for file, content in zip(files, (expected, other, {"x": torch.ones(7)}), strict=True):
        file.parent.mkdir()
        raw.write(content, str(file))
    has = [files[0], files[0], files[1], files[2], None]

    def rank_of(rank):
        nearby = has[rank]
        folders = (str(nearby.parent),) if nearby else ()
        got = transfer.load(
            str(files[0]), nearby and str(nearby), None, trainer_of(rank, 5), folders
        )
        return same_bits(expected, got), sum(received)

    for file in files[1:]:  # whoever would open another's
        assert file.exists()
    all_of_it = raw.File(str(files[0])).layout.end
    same, sizes = zip(*in_processes(rank_of, tmp_path, 5), strict=True)
    assert all(same)
    if way == "along_chains":
        assert [0, 0, all_of_it, all_of_it] == [*sizes[:2], *sizes[3:]]
        assert 0 < sizes[2] <= layout.PIECE + 4096, "the small ones, and one piece"


def test_a_file_elsewhere_than_in_the_ranks_own_folders_is_not_opened(tmp_path, received):
    expected = large_state()
    path = str(tmp_path / "state.raw")
    raw.write(expected, path)

    def rank_of(rank):
        got = transfer.load(path, path, None, trainer_of(rank), ("/elsewhere",))
        return same_bits(expected, got), sum(received) > 0

    assert [(True, False), (True, True)] == in_processes(rank_of, tmp_path)


def test_parameters_take_over_memory_of_values_that_fit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    values = copy.deepcopy(model.state_dict())
    values["0.weight"] += 1
    values["0.bias"] = values["0.bias"].double()
    before = copy.deepcopy(values)
    transfer.take_over(model, values)
    model.load_state_dict(values)
    assert model[0].weight.data_ptr() == values["0.weight"].data_ptr()
    assert model[0].bias.dtype == torch.float32, "loading converts"
    for name, value in model.state_dict().items():
        assert torch.equal(before[name].to(value.dtype), value)


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
