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
