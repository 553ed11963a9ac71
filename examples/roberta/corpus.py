"""Where the example's text comes from, and how it is split into train, valid and test."""

import itertools
from collections.abc import Iterable, Sequence

SPLITS = ("train", "valid", "test")


class InputError(Exception):
    """Its message is one line for the user: what is wrong with the input, and what to do."""


def pydoc_topics() -> str:
    """The reference texts of Python's own help(): English that needs no download."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def text_files(paths: Sequence[str]) -> str:
    return "\n\n".join(_read(path) for path in paths)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}): give the paths of readable text files"
        ) from None
    if not text.strip():
        raise InputError(f"{path} has no text in it: leave it out")
    return text


def split(text: str) -> dict[str, list[str]]:
    """The lines of each split: of every 20 paragraphs one is for validation, one for test.

    Paragraphs are separated by empty lines. A text with hardly any is taken line by line.
    """
    lines = [line.strip() for line in text.split("\n")]
    paragraphs = [list(group) for filled, group in itertools.groupby(lines, key=bool) if filled]
    if len(paragraphs) < 20:
        paragraphs = [[line] for line in lines if line]
    if len(paragraphs) < 20:
        raise InputError(
            f"there are only {len(paragraphs)} lines of text: give at least 20, some thousands "
            "for a model that learns"
        )
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for i, paragraph in enumerate(paragraphs):
        name = {10: "valid", 19: "test"}.get(i % 20, "train")
        # The empty line is what fairseq takes for the end of a document.
        splits[name] += [*paragraph, ""]
    return splits


def wikitext_103() -> dict[str, Iterable[str]]:
    """WikiText-103 from the Hugging Face hub, which has its own splits."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            "--wikitext-103 needs the datasets library: pip install datasets"
        ) from None
    try:
        data = load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")
    except Exception as error:  # of many kinds, the network's among them; all end here
        raise InputError(
            f"cannot load Salesforce/wikitext from the Hugging Face hub ({_one_line(error)}): "
            "check the network, or use --text with local files"
        ) from None
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {name: (row["text"].strip() for row in data[names[name]]) for name in SPLITS}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
