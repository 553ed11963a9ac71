"""Servers, ranks and workers that do what a test says."""

import time
import types

import puppets
import pytest
from driving import Driver

from fairseq_ray_plugin.checkpoints import memory
from fairseq_ray_plugin.protocol import Ready
from fairseq_ray_plugin.worker.progress import Link


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    for name in ("shm", "disk", "save_dir"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(memory, "roots", lambda: [str(tmp_path / "shm"), str(tmp_path / "disk")])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def ranks():
    ranks = puppets.Puppets()
    yield ranks
    ranks.close()


@pytest.fixture
def importing(ranks, small_world, tmp_path):
    """A driver whose worker is at its imports."""
    driver = Driver(ranks.imports, tmp_path / "save_dir")
    yield driver
    driver.close()


@pytest.fixture
def driver(ranks, small_world, tmp_path):
    driver = Driver(ranks.ranks, tmp_path / "save_dir")
    assert Ready() == driver.hear()
    yield driver
    driver.close()


@pytest.fixture
def clock(monkeypatch):
    """What time it is, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sent():
    """What has been sent by `link`."""
    return []


@pytest.fixture
def link(sent):
    """A rank's end of a connection."""
    return Link(types.SimpleNamespace(send=sent.append))
