"""States in raw files come back bit for bit, as large as they are, or say why not."""

import argparse
import copy
import errno

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_ray_plugin.training import raw


def state():
    base = torch.randn(100)
    return {
        "views": [base[:50].view(5, 10), base[50:], base[::2]],
        "kinds": {
            dtype: torch.arange(7).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
        },
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "rest": [argparse.Namespace(a=1), OmegaConf.create({"lr": [0.1]}), "text", None, 3.5],
    }


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, list):
        for v in value:
            yield from tensors(v)


def bits_of(tensor):
    whole = tensor.detach().clone(memory_format=torch.contiguous_format)
    return whole.view(-1).view(torch.uint8)


def same_bits(before, after):
    """Whether two states are the same, tensors to the last bit and in the same layout."""
    pairs = list(zip(tensors(before), tensors(after), strict=True))
    return before["rest"] == after["rest"] and all(
        (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        and type(one) is type(other)
        and torch.equal(bits_of(one), bits_of(other))
        for one, other in pairs
    )


def test_every_bit_comes_back_and_what_shared_memory_shares_it(tmp_path):
    before, path = state(), str(tmp_path / "state.raw")
    raw.write(before, path)
    after = raw.read(path)
    assert 12 == len(list(tensors(after)))
    assert same_bits(before, after)
    after["nan"][2] = 0.0  # was -0.0
    assert not same_bits(before, after)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_read_is_the_readers_own(tmp_path, mapped):
    path = str(tmp_path / "state.raw")
    raw.write(state(), path)
    read = raw.read(path, mapped)
    read["views"][0][0, 0] = 7
    assert 7 == read["views"][2][0], "one storage"
    assert 7 != raw.read(path, mapped)["views"][2][0], "the file is as it was"


def test_what_was_copied_does_not_follow_a_file_that_is_used_again(tmp_path):
    path = str(tmp_path / "state.raw")
    raw.write({"x": torch.zeros(1000)}, path)
    read = raw.read(path)["x"]
    raw.write({"x": torch.ones(1000)}, path)
    assert 0 == read.sum()


def test_a_file_that_was_there_is_used_again_whatever_its_size(tmp_path):
    path = tmp_path / "state.raw"
    for size in (1000, 10, 5000):
        raw.write({"x": torch.full((size,), float(size))}, str(path))
        read = raw.read(str(path))["x"]
        assert torch.equal(read, torch.full((size,), float(size)))
        assert size * 4 < path.stat().st_size < size * 4 + 1000


def test_what_is_no_raw_file_is_told_from_one(tmp_path):
    path = tmp_path / "state.raw"
    raw.write({"x": torch.ones(3)}, str(path))
    torch.save({"x": torch.ones(3)}, tmp_path / "checkpoint.pt")
    assert raw.is_raw(str(path)) and not raw.is_raw(str(tmp_path / "checkpoint.pt"))
    assert not raw.is_raw(str(tmp_path / "gone"))
    data = path.read_bytes()
    for cut in (10, 60, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="state.raw is"):
            raw.read(str(path))


def test_room_is_left_to_others(tmp_path, monkeypatch):
    assert [32 << 20, 512 << 20, 1 << 30] == [raw.reserve(size << 20) for size in (64, 8192, 65536)]
    monkeypatch.setattr(raw, "reserve", lambda size: size + 1)
    with pytest.raises(OSError) as caught:
        raw.write({"x": torch.ones(3)}, str(tmp_path / "state.raw"))
    assert errno.ENOSPC == caught.value.errno


def test_the_state_that_was_read_can_be_saved_and_copied(tmp_path):
    path = str(tmp_path / "state.raw")
    raw.write(state(), path)
    read = raw.read(path)
    torch.save(read, tmp_path / "checkpoint.pt")
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    for one, other in zip(tensors(copy.deepcopy(read)), tensors(again), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
