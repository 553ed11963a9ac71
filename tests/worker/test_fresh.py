"""Where CUDA was started too early for a fork, a rank is a new interpreter."""

import subprocess
import sys

import data
import pytest


@pytest.mark.parametrize(
    ("says", "is_forked"),
    [
        ("", True),
        ("torch.cuda.is_initialized = lambda: True", False),
        ("pid = os.getpid(); torch.cuda._is_in_bad_fork = lambda: os.getpid() != pid", False),
    ],
)
def test_what_torch_says_of_cuda_decides_whether_ranks_are_forked(says, is_forked):
    code = (
        f"import os, torch\n{says}\nfrom fairseq_ray_plugin.worker import fresh\n"
        "print(fresh.why_not_forked('/my/code'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=data.environment()
    )
    assert is_forked == (done.stdout == "None\n"), done.stderr
    assert is_forked or "importing /my/code starts CUDA" in done.stdout
