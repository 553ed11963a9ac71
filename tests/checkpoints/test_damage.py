"""Whatever happens to a checkpoint's file is noticed, or makes no difference to what is loaded."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import same
from states import state, write_ours, write_stock

from fairseq_ray_plugin.checkpoints import archive, catalog
from fairseq_ray_plugin.checkpoints.sums import Damaged

PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Sample:
    """A whole checkpoint, and room for damaged copies of it."""

    path: str
    data: bytes
    content: dict
    records: dict
    """By name, without the archive's folder."""

    def is_noticed(self, data):
        """Whether `verify` minds; where it does not, what is loaded must be the same."""
        with open(self.path, "wb") as file:
            file.write(data)
        try:
            catalog.verify(self.path)
        except Damaged:
            return True
        assert same(self.content, torch.load(self.path, weights_only=False))
        return False

    def flipped(self, place, bit=0):
        data = bytearray(self.data)
        data[place] ^= 1 << bit
        return bytes(data)

    @functools.cached_property
    def between(self):
        """The places that are in no record."""
        inside = set()
        for record in self.records.values():
            inside.update(range(record.begin, record.begin + record.size))
        return [place for place in range(len(self.data)) if place not in inside]

    def tensor(self):
        """The largest record."""
        return max(self.records.values(), key=lambda record: record.size)


@pytest.fixture(scope="module", params=[write_stock, write_ours], ids=["stock", "ours"])
def sample(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "checkpoint_last.pt"
    request.param(path, state(width=96))
    with open(path, "rb") as file:
        records = {r.name.partition("/")[2]: r for r in archive.records(file)}
    content = torch.load(path, weights_only=False)
    return Sample(str(path), path.read_bytes(), content, records)


def whole_but(sample, begin, end, filling=b"\0"):
    return sample.data[:begin] + filling * (end - begin) + sample.data[end:]


DAMAGES = {
    "first byte": lambda s: s.flipped(0),
    "local header": lambda s: s.flipped(s.tensor().begin - 70, 3),
    "data.pkl": lambda s: s.flipped(s.records["data.pkl"].begin + 200, 5),
    "begin of a tensor": lambda s: s.flipped(s.tensor().begin),
    "middle of a tensor": lambda s: s.flipped(s.tensor().begin + s.tensor().size // 2, 7),
    "end of a tensor": lambda s: s.flipped(s.tensor().begin + s.tensor().size - 1, 4),
    "directory": lambda s: s.flipped(s.data.rindex(b"PK\1\2") + 16),
    "end of the directory": lambda s: s.flipped(len(s.data) - 12),
    "cut short by a byte": lambda s: s.data[:-1],
    "half copied": lambda s: s.data[: len(s.data) // 2],
    "half copied, at its full size": lambda s: whole_but(s, len(s.data) // 2, len(s.data)),
    "a page of zeros": lambda s: whole_but(s, PAGE * 3, PAGE * 4),
    "a page of another file": lambda s: whole_but(s, PAGE * 2, PAGE * 3, b"x"),
    "something behind it": lambda s: s.data + b"x",
    "empty": lambda s: b"",
    "twice": lambda s: s.data * 2,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_noticed(sample, damage):
    assert sample.is_noticed(damage(sample))


def test_what_is_not_damaged_is_not_said_to_be(sample):
    assert not sample.is_noticed(sample.data)


@settings(max_examples=300, deadline=None)
@given(number=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_bit_that_is_flipped_is_noticed_or_makes_no_difference(sample, number, bit):
    sample.is_noticed(sample.flipped(number % len(sample.data), bit))


@settings(max_examples=300, deadline=None)
@given(number=st.integers(min_value=0), bit=st.integers(0, 7))
def test_so_is_any_bit_between_the_records(sample, number, bit):
    """Where there are a few bytes only, and most of them mean something."""
    place = sample.between[number % len(sample.between)]
    sample.is_noticed(sample.flipped(place, bit))


def test_a_record_that_was_exchanged_for_another_is_noticed(sample):
    """As where a file system mixes up its blocks: each has a CRC32 that is right."""
    first, second = sorted(
        (r for r in sample.records.values() if r.size == sample.tensor().size),
        key=lambda record: record.begin,
    )[:2]
    gap = sample.data[first.begin + first.size : second.begin]
    parts = (
        sample.data[: first.begin],
        sample.data[second.begin : second.begin + second.size],
        gap,
        sample.data[first.begin : first.begin + first.size],
        sample.data[second.begin + second.size :],
    )
    assert sample.is_noticed(b"".join(parts))


def test_what_torch_wrote_before_its_archives_cannot_tell(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(archive.Opaque):
        catalog.verify(str(path))
