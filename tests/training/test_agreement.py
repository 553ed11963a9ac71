"""Ranks that hold different things are found, and named."""

import copy

import pytest
import torch

from fairseq_ray_plugin.training import agreement


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


def test_the_odd_ones_are_named():
    assert "" == agreement.odd_ones([7])
    assert "" == agreement.odd_ones([7, 7, 7])
    assert "rank 1" == agreement.odd_ones([7, 8])
    assert "rank 0" == agreement.odd_ones([8, 7, 7])
    assert "ranks 1, 3" == agreement.odd_ones([7, 8, 7, 9])
