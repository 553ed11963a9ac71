"""Makes a fairseq data folder for RoBERTa pre-training.

The folder has what `fairseq-preprocess --only-source` writes, plus the encoder.json and vocab.bpe
that fairseq's gpt2 byte-level BPE reads. It appears when it is complete, and not before.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import corpus
from corpus import SPLITS, InputError

GPT2_BPE = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/"
RECIPE_FILE = "recipe.json"
LINES_AT_A_TIME = 10_000


def main() -> int:
    """The exit status: 2 with one line on stderr where the input is at fault."""
    # So that a terminated run removes its temporary folder, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args = _parse_arguments()
    try:
        make_data(args)
    except InputError as error:
        print(f"preprocess.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="local text files in UTF-8 (default: the texts of Python's help())",
    )
    source.add_argument(
        "--wikitext-103",
        action="store_true",
        help="WikiText-103 from the Hugging Face hub, with GPT-2's BPE",
    )
    parser.add_argument("--dest-dir", default="data-bin/roberta", metavar="DIR")
    parser.add_argument(
        "--vocab-size", type=int, default=4096, metavar="N", help="of a BPE trained on the text"
    )
    parser.add_argument(
        "--gpt2-bpe",
        metavar="ADDRESS",
        help="use the encoder.json, vocab.bpe and dict.txt in this folder or at this address "
        f"instead of training a BPE (with --wikitext-103: {GPT2_BPE})",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="for binarising")
    args = parser.parse_args()
    if args.vocab_size < 260:
        parser.error("--vocab-size: a byte-level BPE needs at least 260")
    if args.wikitext_103:
        args.gpt2_bpe = args.gpt2_bpe or GPT2_BPE
    return args


def make_data(args: argparse.Namespace) -> None:
    """The finished folder is there: now, or already."""
    dest_dir = Path(args.dest_dir).absolute()
    text = _text(args)
    recipe = {
        "source": "wikitext-103-raw-v1" if args.wikitext_103 else "text",
        "sha256": text and hashlib.sha256(text.encode()).hexdigest(),
        "bpe": args.gpt2_bpe or f"trained, vocabulary of {args.vocab_size}",
    }
    if _is_finished(dest_dir, recipe):
        print(f"{args.dest_dir} is finished already: kept")
        return
    splits = corpus.wikitext_103() if text is None else corpus.split(text)
    with _sibling(dest_dir) as scratch:
        finished = Path(scratch, "data")
        finished.mkdir()
        if args.gpt2_bpe:
            _copy_bpe(args.gpt2_bpe, finished)
        else:
            _train_bpe(splits["train"], args.vocab_size, finished)
        counts = {name: _encode(splits[name], finished, Path(scratch, name)) for name in SPLITS}
        if not args.gpt2_bpe:
            _write_dictionary(finished, counts["train"])
        _binarise(Path(scratch), finished, args.workers)
        (finished / RECIPE_FILE).write_text(json.dumps(recipe, indent=1) + "\n")
        os.replace(finished, dest_dir)
    tokens = ", ".join(f"{name} {counts[name].total():,}" for name in SPLITS)
    print(f"{args.dest_dir} is finished: tokens: {tokens}")


def _text(args: argparse.Namespace) -> str | None:
    if args.wikitext_103:
        return None
    return corpus.text_files(args.text) if args.text else corpus.pydoc_topics()


def _is_finished(dest_dir: Path, recipe: dict) -> bool:
    if not dest_dir.exists() or (dest_dir.is_dir() and not any(dest_dir.iterdir())):
        return False
    try:
        found = json.loads((dest_dir / RECIPE_FILE).read_text())
    except (OSError, ValueError):
        found = None
    if found != recipe:
        raise InputError(
            f"{dest_dir} is there already and was not made from this input: "
            "remove it, or name another --dest-dir"
        )
    return True


def _sibling(dest_dir: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder that a rename can move the result out of."""
    try:
        dest_dir.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{dest_dir.name}.", dir=dest_dir.parent)
    except OSError as error:
        raise InputError(
            f"cannot write in {dest_dir.parent} ({error.strerror}): name another --dest-dir"
        ) from None


def _train_bpe(lines: Iterable[str], vocab_size: int, folder: Path) -> None:
    """encoder.json and vocab.bpe, in GPT-2's format, are in the folder."""
    from tokenizers import ByteLevelBPETokenizer

    print(f"training a byte-level BPE with a vocabulary of {vocab_size}")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, vocab_size=vocab_size, show_progress=False)
    vocab_file, merges_file = tokenizer.save_model(str(folder))
    os.replace(vocab_file, folder / "encoder.json")
    os.replace(merges_file, folder / "vocab.bpe")


def _copy_bpe(address: str, folder: Path) -> None:
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        source = address.rstrip("/") + "/" + name
        print(f"getting {source}")
        try:
            if urllib.parse.urlparse(address).scheme in ("http", "https"):
                with urllib.request.urlopen(source, timeout=60) as response:
                    (folder / name).write_bytes(response.read())
            else:
                shutil.copyfile(source, folder / name)
        except OSError as error:
            raise InputError(
                f"cannot get {source} ({error}): check --gpt2-bpe and the network"
            ) from None


def _encode(lines: Iterable[str], bpe_folder: Path, path: Path) -> Counter[int]:
    """The file has each line's BPE ids, as fairseq's multiprocessing_bpe_encoder.py writes them.

    Returns how often each id occurs.
    """
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer.from_file(
        str(bpe_folder / "encoder.json"), str(bpe_folder / "vocab.bpe")
    )
    counts: Counter[int] = Counter()
    remaining = iter(lines)
    with open(path, "w", encoding="ascii") as file:
        while batch := list(itertools.islice(remaining, LINES_AT_A_TIME)):
            for encoding in tokenizer.encode_batch(batch):
                counts.update(encoding.ids)
                file.write(" ".join(map(str, encoding.ids)) + "\n")
    return counts


def _write_dictionary(folder: Path, counts: Counter[int]) -> None:
    """fairseq's dictionary of all ids, also of those not in train: nothing becomes <unk>."""
    ids = json.loads((folder / "encoder.json").read_text(encoding="utf-8")).values()
    with open(folder / "dict.txt", "w", encoding="ascii") as file:
        for i in sorted(ids, key=lambda i: (-counts[i], i)):
            file.write(f"{i} {counts[i]}\n")


def _binarise(encoded: Path, folder: Path, workers: int) -> None:
    print("binarising with fairseq-preprocess")
    command = [sys.executable, "-m", "fairseq_ray_plugin", "preprocess", "--only-source"]
    for name in SPLITS:
        command += [f"--{name}pref", str(encoded / name)]
    command += ["--srcdict", str(folder / "dict.txt"), "--destdir", str(folder)]
    command += ["--workers", str(workers)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\npreprocess.py: fairseq-preprocess failed, see above")
    # It names the temporary folder, and differs from run to run.
    (folder / "preprocess.log").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
