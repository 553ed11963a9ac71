"""Binarized text for the tasks that read it: numbers in words, in English and French."""

import random
from pathlib import Path

import data
import torch
from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.data.legacy import BertDictionary, MaskedLMDictionary

LANGUAGES = ("en", "fr")
SIZES = {"train": 96, "valid": 16}
SYMBOLS = ("__en__", "__fr__", "[en]", "[fr]")
"""Tags of languages: the tasks that use them want them in the dictionary."""


def pairs(split: str) -> list[tuple[str, str]]:
    """Numbers in English and French; no two are alike, and lengths vary."""
    numbers = random.Random(1).sample(range(100_000), sum(SIZES.values()))
    part = numbers[: SIZES["train"]] if split == "train" else numbers[SIZES["train"] :]
    return [tuple(data.number_words(n, language) for language in LANGUAGES) for n in part]


def lines(split: str, language: str) -> list[str]:
    return [pair[LANGUAGES.index(language)] for pair in pairs(split)]


def dictionary(kind: type[Dictionary] = Dictionary) -> Dictionary:
    """One for both languages, with room to add symbols to (`madeupword`)."""
    words = kind()
    for language in LANGUAGES:
        for line in lines("train", language):
            for word in line.split():
                words.add_symbol(word)
    words.finalize(padding_factor=8)
    for symbol in SYMBOLS:
        words.add_symbol(symbol)
    return words


def binarize(prefix: Path, words: Dictionary, text: list[str], append_eos: bool = True) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin")
    for line in text:
        builder.add_item(words.encode_line(line, add_if_not_exist=False, append_eos=append_eos))
    builder.finalize(f"{prefix}.idx")


def monolingual(folder: Path, kind: type[Dictionary] = Dictionary) -> None:
    """As `fairseq-preprocess --only-source` makes it."""
    words = dictionary(kind)
    words.save(str(folder / "dict.txt"))
    for split in SIZES:
        binarize(folder / split, words, lines(split, "en"))


def documents(folder: Path, kind: type[Dictionary] = Dictionary) -> None:
    """Sentences, with an empty line after each 4."""
    words = dictionary(kind)
    words.save(str(folder / "dict.txt"))
    for split in SIZES:
        text = lines(split, "en")
        blocks = [[*text[i : i + 4], ""] for i in range(0, len(text), 4)]
        binarize(folder / split, words, [line for block in blocks for line in block])


def bert(folder: Path) -> None:
    documents(folder, BertDictionary)


def languages(folder: Path, kind: type[Dictionary] = Dictionary) -> None:
    """A folder for each language."""
    words = dictionary(kind)
    words.save(str(folder / "dict.txt"))
    for language in LANGUAGES:
        words.save(str(folder / language / "dict.txt"))
        for split in SIZES:
            binarize(folder / language / split, words, lines(split, language))


def by_language(folder: Path) -> None:
    """`train.en`, `train.fr`, for cross-lingual language models."""
    words = dictionary(MaskedLMDictionary)
    words.save(str(folder / "dict.txt"))
    for split in SIZES:
        for language in LANGUAGES:
            binarize(folder / f"{split}.{language}", words, lines(split, language))


def parallel(folder: Path, kind: type[Dictionary] = Dictionary) -> None:
    """Pairs, the same text on one side only, and alignments (word by word, made up)."""
    words = dictionary(kind)
    words.save(str(folder / "dict.txt"))
    for language in LANGUAGES:
        words.save(str(folder / f"dict.{language}.txt"))
        for split in SIZES:
            text = lines(split, language)
            binarize(folder / f"{split}.en-fr.{language}", words, text)
            binarize(folder / f"{split}.{language}-None.{language}", words, text)
    for split in SIZES:
        builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.align.en-fr.bin"))
        for english, french in pairs(split):
            count = min(len(english.split()), len(french.split()))
            builder.add_item(torch.arange(count, dtype=torch.int32).repeat_interleave(2))
        builder.finalize(str(folder / f"{split}.align.en-fr.idx"))


def backtranslation(folder: Path) -> None:
    """A folder for each language to train on, and pairs to validate on."""
    parallel(folder)
    languages(folder)


def sentences(folder: Path) -> None:
    """Three inputs and a label, which says whether the number is the longer one; and a score."""
    words, labels = dictionary(), Dictionary()
    for label in ("0", "1"):
        labels.add_symbol(label)
    labels.finalize(padding_factor=1)
    for name in ("input0", "input1", "input2", "label"):
        (folder / name).mkdir()
        (labels if name == "label" else words).save(str(folder / name / "dict.txt"))
    for split in SIZES:
        text = lines(split, "en")
        others = text[1:] + text[:1]
        third = text[2:] + text[:2]
        for name, part in (("input0", text), ("input1", others), ("input2", third)):
            binarize(folder / name / split, words, part)
        longer = [str(int(len(a) > len(b))) for a, b in zip(text, others, strict=True)]
        binarize(folder / "label" / split, labels, longer, append_eos=False)
        (folder / "label" / f"{split}.label").write_text("\n".join(longer) + "\n")
