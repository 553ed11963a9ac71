"""Small real data sets, made without any download, and tiny models that train on them.

A model below makes more than 10 updates a second on one CPU core. Add the data folder and a
``--save-dir``:

    run_tool("train", data, "--save-dir", save_dir, *TRANSLATION, "--max-update", 20)
"""

import os
import pydoc_data.topics
import random
import re
import subprocess
import sys
from pathlib import Path

from num2words import num2words

REPOSITORY = Path(__file__).resolve().parent.parent

ON_CPU = [
    "--cpu",
    *("--distributed-backend", "gloo"),
    *("--num-workers", "0", "--seed", "7"),
    *("--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints"),
    *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0"),
    *("--lr", "2e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "50"),
]

TRANSLATION = [
    *ON_CPU,
    *("--task", "translation", "--source-lang", "en", "--target-lang", "fr"),
    *("--arch", "transformer", "--encoder-layers", "2", "--decoder-layers", "2"),
    *("--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    *("--decoder-embed-dim", "64", "--decoder-ffn-embed-dim", "128", "--dropout", "0.1"),
    *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    *("--max-tokens", "500"),
]

LANGUAGE_MODELING = [
    *ON_CPU,
    *("--task", "language_modeling", "--tokens-per-sample", "64"),
    *("--arch", "transformer_lm", "--decoder-layers", "2", "--decoder-attention-heads", "2"),
    *("--decoder-embed-dim", "64", "--decoder-ffn-embed-dim", "128", "--dropout", "0.1"),
    *("--share-decoder-input-output-embed", "--batch-size", "4"),
]

MASKED_LM = [
    *ON_CPU,
    *("--task", "masked_lm", "--criterion", "masked_lm", "--tokens-per-sample", "64"),
    *("--arch", "roberta_base", "--encoder-layers", "2", "--encoder-attention-heads", "2"),
    *("--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128", "--dropout", "0.1"),
    *("--sample-break-mode", "complete", "--batch-size", "4"),
]


def without(options: list[str], *names: str) -> list[str]:
    """``options`` less those named, each with its value."""
    pairs = zip(["", *options], options, strict=False)
    return [option for before, option in pairs if not {before, option} & set(names)]


def environment() -> dict[str, str]:
    """The environment in which a child process imports this package, and uses one core."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_tool(tool: str, *arguments: object, stdin: str = "", check: bool = True) -> str:
    """The stock fairseq tool has run in a process of its own; what it printed is returned.

    Raises:
        AssertionError: it failed, and ``check`` is set; carries the end of its output.
    """
    process = subprocess.run(
        [sys.executable, "-m", "fairseq_ray_plugin", tool, *map(str, arguments)],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    if check:
        assert process.returncode == 0, f"{tool}: {process.returncode}\n{process.stdout[-6000:]}"
    return process.stdout


def parallel_text(folder: Path) -> Path:
    """``folder`` holds 4000 numbers in English and French words; its binarized form is returned.

    Sentences have 1 to 13 words, and every pair occurs once, so that batches are padded and a
    sample can be told from all others. Raw text: ``{train,valid,test}.{en,fr}`` in ``folder``.
    """
    numbers = random.Random(1).sample(range(1_000_000), 4000)
    write_splits(folder, "en", [number_words(number, "en") for number in numbers])
    write_splits(folder, "fr", [number_words(number, "fr") for number in numbers])
    binarized = folder / "bin"
    run_tool(
        *("preprocess", "--source-lang", "en", "--target-lang", "fr", "--destdir", binarized),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
        *("--testpref", folder / "test"),
    )
    return binarized


def english_text(folder: Path) -> Path:
    """``folder`` holds Python's own manual, a line each; its binarized form is returned.

    About 8700 lines and a vocabulary of 3000 words; the rest is ``<unk>``. Raw text:
    ``{train,valid,test}.txt`` in ``folder``.
    """
    text = "\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    lines = [" ".join(re.findall(r"\w+|[^\w\s]+", line)) for line in text.splitlines()]
    write_splits(folder, "txt", [line for line in lines if line])
    binarized = folder / "bin"
    run_tool(
        *("preprocess", "--only-source", "--nwordssrc", "3000", "--destdir", binarized),
        *("--trainpref", folder / "train.txt", "--validpref", folder / "valid.txt"),
        *("--testpref", folder / "test.txt"),
    )
    return binarized


def number_words(number: int, language: str) -> str:
    return num2words(number, lang=language).replace("-", " ").replace(",", " ,")


def write_splits(folder: Path, suffix: str, lines: list[str]) -> None:
    """``test``, ``valid`` and ``train`` hold the first 200, the next 200 and all other lines."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"test": lines[:200], "valid": lines[200:400], "train": lines[400:]}
    for name, part in splits.items():
        (folder / f"{name}.{suffix}").write_text("\n".join(part) + "\n", encoding="utf-8")
