"""Where storages lie: each byte in one piece, and sums that tell pieces apart."""

import numpy as np
import pytest
import torch

from fairseq_ray_plugin.training import layout
from fairseq_ray_plugin.training.layout import Layout, Memory, Storages, Sum

SIZES = [0, 3, 2 * layout.PIECE + 8, 100, layout.LARGE, 3 * layout.LARGE, layout.BLOCK, 7]


def storages_of(sizes):
    return [torch.UntypedStorage(size).fill_(number + 1) for number, size in enumerate(sizes)]


def test_small_storages_come_first_and_all_is_in_one_piece():
    there = Layout(SIZES)
    assert [0, 1, 3, 7, 2, 4, 5, 6] == there.order
    assert there.offsets[2] == there.pieces[0][1], "they are a piece of their own"
    at = 0
    for begin, end in there.pieces:
        assert begin == at and begin < end <= begin + layout.PIECE
        at = end
    assert there.end == at
    for begin, size in zip(there.offsets, SIZES, strict=True):
        (block,) = [block for block in there.blocks if block[0] <= begin < block[1]]
        assert begin % 64 == 0 and begin + size <= block[1]
    assert Layout([]).pieces == []


@pytest.mark.parametrize("step", [layout.STEP, layout.PIECE])
def test_what_is_read_in_steps_is_there_again(step):
    there = Layout(SIZES)
    source, memory = Storages(there, storages_of(SIZES)), Memory(there)
    for begin, end in there.pieces:
        target = memory.at(begin, end)
        for at in range(begin, end, step):
            stop = min(at + step, end)
            target[at - begin : stop - begin] = source.at(at, stop)
    for number, (storage, size) in enumerate(zip(memory.storages(), SIZES, strict=True)):
        assert size == storage.nbytes()
        assert (layout.bytes_of(storage) == number + 1).all()


def sum_of(*steps):
    total = Sum()
    for step in steps:
        total.add(step)
    return total.value


@pytest.mark.parametrize("bit", [0, 7, 31, 32, 63])
def test_sums_tell_what_differs_in_any_two_bits(bit):
    """A sum of the words would not tell a bit more from the same bit less."""
    step = np.zeros(4096, dtype=np.uint8)
    words = step.view(np.uint64)
    seen = {sum_of(step)}
    for other in range(1, 500):
        words[:] = 0
        words[0] = words[other] = 1 << bit
        seen.add(sum_of(step))
    assert 500 == len(seen)
    one, other = np.arange(256, dtype=np.uint8), np.ones(256, dtype=np.uint8)
    assert sum_of(one, other) != sum_of(other, one)
