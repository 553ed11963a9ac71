"""A worker knows its GPU by its UUID, or says nothing of it."""

import asyncio

import pytest
from driving import Driver, LocalWorker

from fairseq_ray_plugin.protocol import Ready
from fairseq_ray_plugin.worker import gpu

pytestmark = pytest.mark.timeout(60)

ALIKE = """\
0, GPU-0f2a, NVIDIA H100 80GB HBM3
1, GPU-1b3c, NVIDIA H100 80GB HBM3
10, GPU-aa, NVIDIA H100 80GB HBM3
"""
MIXED = "0, GPU-0f2a, NVIDIA A100-SXM4-80GB\n1, GPU-1b3c, NVIDIA T4, with a comma\n"


@pytest.mark.parametrize(
    ("table", "device", "order", "uuid"),
    [
        (ALIKE, "1", "", "GPU-1b3c"),
        (ALIKE, "7", "", ""),
        (MIXED, "1", "PCI_BUS_ID", "GPU-1b3c"),
        (MIXED, "1", "", ""),  # CUDA's own numbers begin with the fastest
        ("No devices were found\n", "0", "", ""),
        ("", "0", "", ""),
    ],
)
def test_the_uuid_is_found_in_the_table(table, device, order, uuid):
    assert uuid == gpu.find(table, device, order)


def ask(device, **environment):
    return asyncio.run(gpu.uuid_of(device, environment))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Makes nvidia-smi a script of this text."""

    def make(text):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return make


def test_nvidia_smi_is_asked(smi):
    smi(f"cat <<E\n{ALIKE}E\ntest $1 = --query-gpu=index,uuid,name")
    assert "GPU-1b3c" == ask("1")


def test_what_is_a_uuid_already_is_not_asked_for(smi):
    smi("exit 1")
    assert "MIG-77-aa" == ask("MIG-77-aa")
    assert ["", ""] == [ask(""), ask("0,1")]


def test_a_question_without_an_answer_leaves_it_unknown(smi, tmp_path, monkeypatch):
    smi("exit 9")
    assert "" == ask("0")
    smi("exec sleep 60")
    monkeypatch.setattr(gpu, "LIMIT_S", 0.1)
    assert "" == ask("0")
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "" == ask("0")


def test_a_worker_says_which_gpu_it_has_and_tells_another_loop(
    ranks, small_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(LocalWorker, "get_gpu", lambda self: "GPU-1b3c")
    driver = Driver(ranks.ranks, tmp_path / "save_dir")
    assert Ready("GPU-1b3c") == driver.hear()
    assert "GPU-1b3c" == driver.ask(driver.worker.adopt()).gpu
    driver.close()
