"""The kernel does with pages what it is told, and values stay as they are."""

import mmap
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from fairseq_ray_plugin.training import pages

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

NO_LARGE_PAGES = pytest.mark.skipif(
    sys.platform != "linux" or LARGE_PAGES.exists() and "[always]" in LARGE_PAGES.read_text(),
    reason="faults are counted by pages of 4 kB",
)
pytestmark = NO_LARGE_PAGES


def num_faults(action):
    """Page faults of this process while it does something."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_only_pages_that_have_nothing_else_are_a_tensors():
    large = torch.zeros(1_000_000)
    (begin, length), *others = pages.of([large, torch.zeros(1000)])
    assert [] == others
    assert large.data_ptr() < begin and begin + length <= large.data_ptr() + large.nbytes
    assert 0 == begin % mmap.PAGESIZE == length % mmap.PAGESIZE
    assert large.nbytes - length < 3 * mmap.PAGESIZE
    assert [] == pages.within([(begin, 0), (begin + 1, mmap.PAGESIZE)])


def test_who_writes_to_pages_that_were_touched_waits_for_none():
    tensors = [torch.empty(10_000_000) for _ in range(2)]
    pages.touch(pages.of(tensors[1:]))
    untouched, touched = (num_faults(lambda t=tensor: t.fill_(1)) for tensor in tensors)
    assert untouched > 9000 and touched < 100


def test_pages_of_a_file_that_were_touched_have_its_values(tmp_path):
    path = tmp_path / "values"
    path.write_bytes(os.urandom(10 << 20))
    mapped = torch.from_file(str(path), shared=False, size=10 << 20, dtype=torch.uint8)
    pages.touch(pages.of([mapped]))
    assert path.read_bytes() == mapped.numpy().tobytes()
    assert num_faults(lambda: mapped.fill_(1)) < 100
    assert path.read_bytes() != mapped.numpy().tobytes()


def test_what_a_child_does_not_have_is_its_parents_as_before():
    shared, kept = (torch.ones(10_000_000) for _ in range(2))
    with pages.not_forked(pages.of([kept])):
        if (child := os.fork()) == 0:
            signal.pause()  # until the parent has written
    try:
        assert num_faults(lambda: shared.add_(1)) > 9000
        assert num_faults(lambda: kept.add_(1)) < 100
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
