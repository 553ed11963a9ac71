"""Ranks that hold different things are found, and named."""

import contextlib
import copy
import types

import pytest
import torch
import trainers

from fairseq_ray_plugin.training import agreement
from fairseq_ray_plugin.training.refusal import Refused


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_checksum_is_of_every_bit_of_every_parameter(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3)).to(dtype)
    same, other, swapped, negated = (copy.deepcopy(model) for _ in range(4))
    with torch.no_grad():
        other[1].bias[2] = torch.nextafter(other[1].bias[2], torch.tensor(9, dtype=dtype))
        swapped[0].weight[:3], swapped[1].weight[:, :3] = (
            model[1].weight[:, :3],
            model[0].weight[:3],
        )
        negated[0].bias[0] *= -1
    expected = agreement.checksum(model.parameters())
    assert expected == agreement.checksum(same.parameters())
    for one in (other, swapped, negated):
        assert expected != agreement.checksum(one.parameters())


def test_a_checksum_reads_parameters_that_are_not_contiguous():
    weight = torch.randn(4, 3)
    assert agreement.checksum([weight.t()]) == agreement.checksum([weight.t().contiguous()])


@pytest.mark.parametrize("numel", [7, 8])
def test_a_checksum_does_not_depend_on_where_a_parameter_is(numel):
    values = torch.randn(numel + 1)
    assert agreement.checksum([values[1:]]) == agreement.checksum([values[1:].clone()])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("others", "says"), [((5, 7), ""), ((5, 8), "another order"), ((6, 7), "other parameters")]
)
def test_what_ranks_compare_is_on_their_device(device, others, says, monkeypatch):
    """torch's device without memory stands for a GPU: nothing is mixed with what is elsewhere."""
    trainer = types.SimpleNamespace(
        cfg=trainers.make().cfg,
        model=torch.nn.Linear(3, 3, device=device),
        device=torch.device(device),
        data_parallel_world_size=2,
        data_parallel_process_group=None,
        get_num_updates=lambda: 3,
    )

    def all_gather(all_ranks, mine, group):
        assert {device} == {tensor.device.type for tensor in (mine, *all_ranks)}
        all_ranks[:] = [torch.tensor(pair) for pair in ((5, 7), others)]

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    with pytest.raises(Refused, match=says) if says else contextlib.nullcontext():
        agreement.check(trainer, "7")


def test_the_odd_ones_are_named():
    assert "" == agreement.odd_ones([7])
    assert "" == agreement.odd_ones([7, 7, 7])
    assert "rank 1" == agreement.odd_ones([7, 8])
    assert "rank 0" == agreement.odd_ones([8, 7, 7])
    assert "ranks 1, 3" == agreement.odd_ones([7, 8, 7, 9])
