"""Data and options of it that cannot be used: what is wrong, in one line."""

from __future__ import annotations

import os
import traceback
from typing import Any

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Of other errors of a file system the next try may know nothing."""

_ADVICE = (
    ("exceeds max_tokens limit", "raise --max-tokens"),
    ("The dataset is empty", "no sentence of the data fits: raise --max-tokens, or see its log"),
    ("--skip-invalid-size-inputs-valid-test", ""),
    ("Incorrect encoding detected", ""),
    ("Incorrect dictionary format", ""),
)
"""What fairseq says of data that will not do, and what to do."""

_READERS = ("indexed_dataset.py", "huffman_mmap_indexed_dataset.py")
"""fairseq's files that read binarized data; whatever they raise, the data is to blame."""


def reason(error: BaseException) -> str | None:
    """What is wrong with the data, or an option; None: it is another thing that failed."""
    if isinstance(error, _MISSING):
        what = str(error)
        if error.filename is not None:
            what = f"{error.filename}: {error.strerror}"
        return f"{what}; data must be there on every node, under the same path"
    text = str(error).partition("\n")[0]
    for sign, advice in _ADVICE:
        if sign in str(error):
            return f"{text}; {advice}" if advice else text
    if path := _file_being_read(error):
        return f"{path} cannot be read, it is damaged or not what --dataset-impl says: {text}"
    return None


def check_length(dataset: Any, path: str) -> None:
    """A mapped data set is as long as its index says.

    Raises:
        ValueError: it is shorter; it would be noticed at the sentence that is missing.
    """
    sizes, pointers = dataset._index.sizes, dataset._index._pointers
    if len(sizes) == 0:
        return
    wanted = int(pointers[-1]) + int(sizes[-1]) * dataset._index.dtype().itemsize
    there = os.path.getsize(f"{path}.bin")
    if there < wanted:
        raise Damaged(f"{path}.bin", f"it has {there} bytes, and its index says {wanted}")


class Damaged(ValueError):
    """A file is not what it ought to be."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


def _file_being_read(error: BaseException) -> str:
    """The file, or the beginning of the names of two, where reading binarized data failed."""
    if isinstance(error, Damaged):
        return error.path
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = frame.f_locals.get("path")
        if os.path.basename(frame.f_code.co_filename) in _READERS and isinstance(path, str):
            return path if path.endswith((".idx", ".bin")) else f"{path}.bin"
    return ""
