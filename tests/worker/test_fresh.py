"""Where CUDA was started too early for a fork, a rank is a new interpreter."""

import contextlib
import os
import subprocess
import sys
import threading
from multiprocessing import Pipe

import data
import pytest

from fairseq_ray_plugin.assignment import Go, Holding
from fairseq_ray_plugin.protocol import Held, Hold
from fairseq_ray_plugin.worker import fresh

WAIT_S = 10
"""A test fails that waits longer for what it expects."""


CUDA_HAS_STARTED = "pid = os.getpid(); torch.cuda._is_in_bad_fork = lambda: os.getpid() != pid"


@pytest.mark.parametrize(
    ("says", "is_forked"),
    [
        ("", True),
        ("torch.cuda.is_initialized = lambda: True", False),
        (f"torch.cuda.device_count = lambda: 1; {CUDA_HAS_STARTED}", False),
        # torch built for CUDA, on a machine without: fairseq's import counts the GPUs
        (f"torch.cuda.device_count = lambda: 0; {CUDA_HAS_STARTED}", True),
    ],
)
def test_what_torch_says_of_cuda_decides_whether_ranks_are_forked(says, is_forked):
    code = (
        f"import os, torch\n{says}\nfrom fairseq_ray_plugin.worker import fresh\n"
        "print(fresh.why_not_forked('importing /my/code'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=data.environment()
    )
    assert is_forked == (done.stdout == "None\n"), done.stderr
    assert is_forked or "importing /my/code starts CUDA" in done.stdout


STARTS_IT = """
import os, torch
from fairseq_ray_plugin import compat
compat.apply()
from fairseq_ray_plugin.assignment import Preload
from fairseq_ray_plugin.training import inherited
from fairseq_ray_plugin.worker import forkserver
torch.cuda.device_count = lambda: 1
pid = os.getpid()
def make(cfg):
    torch.cuda._is_in_bad_fork = lambda: os.getpid() != pid
    raise inherited.NotInherited("it makes a tensor on the GPU")
inherited.make = make
forkserver.import_fairseq = lambda preload: None
run = forkserver.make_fairseq_ready(
    Preload(cfg=b"", working_dir=os.getcwd(), python_path=(), user_dir=None)
)
print(run.func.__name__, run.args[1])
"""


def test_a_task_that_starts_cuda_is_made_in_new_interpreters():
    done = subprocess.run(
        [sys.executable, "-c", STARTS_IT], capture_output=True, text=True, env=data.environment()
    )
    assert done.stdout.startswith("_run_afresh making the task or the model starts"), done.stderr


@pytest.fixture
def importing(monkeypatch):
    """The worker's end of the connection to a rank that imports, and what ends the imports."""
    monkeypatch.setattr(os, "_exit", sys.exit)  # this process goes on
    worker, rank = Pipe()
    is_imported, told = threading.Event(), []

    def answer_until_its_end():
        with contextlib.suppress(SystemExit):
            fresh.answer(rank, is_imported, told)

    answers = threading.Thread(target=answer_until_its_end, daemon=True)
    answers.start()
    yield worker, is_imported, answers, told
    worker.close()
    answers.join(WAIT_S)
    assert not answers.is_alive(), "a rank without a worker ends"


def test_a_rank_that_still_imports_says_that_it_holds_nothing_and_never_begins(importing):
    worker, is_imported, answers, told = importing
    for generation in (3, 4):
        worker.send(Hold(generation, at_once=True))
        assert worker.poll(WAIT_S) and Holding() == worker.recv()
        assert worker.poll(WAIT_S) and Held(None, asked=generation) == worker.recv()
    is_imported.set()
    answers.join(4 * fresh.LOOK_S)
    assert answers.is_alive()


def test_a_rank_that_stands_by_and_imports_remembers_what_it_is_told_to_go_on_from(importing):
    worker, is_imported, answers, told = importing
    worker.send(Go("/memory/held.raw", None))
    worker.send(Hold(3, at_once=True))
    assert worker.poll(WAIT_S) and Holding() == worker.recv()
    assert [Go("/memory/held.raw", None)] == told


def test_who_has_imported_everything_leaves_orders_to_the_rank(importing):
    worker, is_imported, answers, told = importing
    is_imported.set()
    answers.join(WAIT_S)
    assert not answers.is_alive()
    worker.send(Hold(3, at_once=True))
    assert not worker.poll(4 * fresh.LOOK_S)
