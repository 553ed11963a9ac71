"""The page by message has today's messages, and has those of every wrong start."""

import argparse
import re
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import data
import pytest
import torch

import fairseq_ray_plugin
from fairseq_ray_plugin.training import unusable

PAGE = (data.REPOSITORY / "docs" / "troubleshooting.md").read_text()
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{4,}\b|\b[A-Z]\b|\b\d+\b")
"""What differs from run to run is in capitals on the page, or a number."""


def texts(path: Path) -> str:
    """What a file of Python can say, values left out.

    From its code: in Python 3.11 a syntax tree fails where another thread prints a traceback.
    """
    return "\n".join(_texts_of(compile(path.read_text(), str(path), "exec")))


def _texts_of(constant: object) -> Iterator[str]:
    match constant:
        case str():
            yield constant
        case types.CodeType():
            for part in constant.co_consts:
                yield from _texts_of(part)
        case tuple() | frozenset():
            for part in constant:
                yield from _texts_of(part)


@pytest.fixture(scope="module")
def said():
    """All that we say, fairseq and the parser of options; of fairseq's also what is compiled."""
    ours = Path(fairseq_ray_plugin.__file__).parent.rglob("*.py")
    stock = Path(find_spec("fairseq").origin).parent
    return "\n".join(
        [
            *map(texts, ours),
            *(path.read_text() for path in (stock / "data").rglob("*.py")),
            *(path.read_text() for path in (stock / "tasks").rglob("*.py")),
            *(path.read_bytes().decode("latin-1") for path in (stock / "data").glob("*.so")),
            Path(argparse.__file__).read_text(),
        ]
    )


def messages() -> list[str]:
    return re.findall(r"^\| `([^`]+)`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("message", [text for text in messages() if "index out of" not in text])
def test_every_message_on_the_page_is_one_that_is_printed(message, said):
    parts = [part.strip() for part in PLACEHOLDER.split(message.replace("--arch/-a", ""))]
    long_ones = [part for part in parts if len(part) > 4]
    assert long_ones
    for part in long_ones:
        assert part in said or part in torch_says(), f"nobody says {part!r}"


def torch_says() -> str:
    """Of a number that no dictionary has."""
    with pytest.raises(IndexError) as caught:
        torch.nn.Embedding(2, 2)(torch.tensor([2]))
    return str(caught.value)


def test_what_torch_says_of_other_dictionaries_numbers_is_on_the_page():
    assert any(text.startswith(torch_says()) for text in messages())


@pytest.mark.parametrize("sign", [sign for sign, _ in unusable._ADVICE])
def test_what_is_known_of_data_that_will_not_do_is_on_the_page(sign):
    assert sign in PAGE
