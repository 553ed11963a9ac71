"""The example's data: what preprocess.py writes, and what it says when it cannot."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
EXAMPLE = CHECKOUT / "examples" / "roberta"
SPLITS = ("train", "valid", "test")
PARAGRAPHS = "\n\n".join(
    f"Paragraph {i} is about the number {i}, naïve as it is.\nIt isn't long: “{i * i}”.\ttab"
    for i in range(60)
)


def command(*args) -> list[str]:
    return [sys.executable, str(EXAMPLE / "preprocess.py"), *map(str, args)]


def environment(**extra) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path} | extra


def preprocess(*args, **extra) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), env=environment(**extra), capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("corpus", EXAMPLE / "corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def default_data(tmp_path_factory) -> Path:
    """The data of Python's help texts."""
    folder = tmp_path_factory.mktemp("default") / "data"
    made = preprocess("--dest-dir", folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def fairseq():
    """fairseq's data classes, importable on this Python."""
    from fairseq_ray_plugin import compat

    compat.apply()
    from fairseq.data import Dictionary, data_utils
    from fairseq.data.encoders import gpt2_bpe_utils

    class Fairseq:
        @staticmethod
        def read(folder: Path):
            dictionary = Dictionary.load(str(folder / "dict.txt"))
            encoder = gpt2_bpe_utils.get_encoder(folder / "encoder.json", folder / "vocab.bpe")
            return dictionary, encoder

        @staticmethod
        def ids(folder: Path, name: str, dictionary) -> list[list[int]]:
            """Each line's BPE ids, from the binarised split."""
            data = data_utils.load_indexed_dataset(str(folder / name), dictionary)
            assert all(line[-1] == dictionary.eos() for line in data)
            return [[int(dictionary[i]) for i in line[:-1]] for line in data]

    return Fairseq


def assert_same_lines(fairseq, folder: Path, splits: dict[str, list[str]]) -> None:
    """The binarised splits are the lines, to fairseq's own GPT-2 encoder, both ways."""
    dictionary, encoder = fairseq.read(folder)
    for name in SPLITS:
        written = fairseq.ids(folder, name, dictionary)
        assert len(written) == len(splits[name])
        for ids, line in zip(written, splits[name], strict=True):
            assert ids == encoder.encode(line)
            assert encoder.decode(ids) == line


def test_the_default_corpus_round_trips_through_fairseqs_gpt2_encoder(
    default_data, corpus, fairseq
):
    splits = corpus.split(corpus.pydoc_topics())
    assert sum(len(line) for line in splits["train"]) > 300_000
    assert_same_lines(fairseq, default_data, splits)


def test_the_dictionary_has_every_bpe_id(default_data, fairseq):
    dictionary, encoder = fairseq.read(default_data)
    assert set(dictionary.symbols[dictionary.nspecial :]) == set(map(str, encoder.decoder))


def test_a_finished_folder_is_kept(default_data):
    before = contents(default_data)
    inode = default_data.stat().st_ino
    again = preprocess("--dest-dir", default_data)
    assert again.returncode == 0
    assert again.stdout == f"{default_data} is finished already: kept\n"
    assert (contents(default_data), default_data.stat().st_ino) == (before, inode)


def test_a_folder_made_from_something_else_is_not_taken_for_it(default_data):
    before = contents(default_data)
    other = preprocess("--dest-dir", default_data, "--vocab-size", 512)
    assert other.returncode == 2
    assert str(default_data) in other.stderr and "remove it" in other.stderr
    assert contents(default_data) == before


def test_local_text_files_twice_give_the_same_bytes_whatever_the_hash_seed(
    tmp_path, corpus, fairseq
):
    (tmp_path / "one.txt").write_text(PARAGRAPHS, encoding="utf-8")
    (tmp_path / "two.txt").write_text("Another file.\n\nIt ends here.", encoding="utf-8")
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for seed, name in enumerate(("first", "second")):
        made = preprocess(
            *("--text", *files, "--vocab-size", 300, "--dest-dir", tmp_path / name),
            PYTHONHASHSEED=str(seed),
        )
        assert made.returncode == 0, made.stdout + made.stderr
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    splits = corpus.split(corpus.text_files(files))
    assert_same_lines(fairseq, tmp_path / "first", splits)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("first", "one.txt", "second", "two.txt")
    ]


def test_wikitext_103_is_made_with_a_given_bpe(tmp_path, default_data, fairseq):
    """Everything but the two downloads: a fake datasets library, a local BPE."""
    rows = {name: [f" The {name} text {i} .\n" for i in range(30)] for name in SPLITS}
    hub_names = {"train": "train", "validation": "valid", "test": "test"}
    (tmp_path / "datasets.py").write_text(
        "def load_dataset(path, config):\n"
        "    assert (path, config) == ('Salesforce/wikitext', 'wikitext-103-raw-v1')\n"
        f"    rows, names = {rows!r}, {hub_names!r}\n"
        "    return {hub: [{'text': t} for t in rows[name]] for hub, name in names.items()}\n"
    )
    made = preprocess(
        *("--wikitext-103", "--gpt2-bpe", default_data, "--dest-dir", tmp_path / "data"),
        PYTHONPATH=f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}",
    )
    assert made.returncode == 0, made.stdout + made.stderr
    stripped = {name: [text.strip() for text in rows[name]] for name in SPLITS}
    assert_same_lines(fairseq, tmp_path / "data", stripped)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, "cannot read {path} (No such file or directory)"),
        (b"caf\xe9 " * 100, "{path} is not UTF-8 text (byte 3): convert it"),
        (b" \n\n ", "{path} has no text in it"),
        (b"one line\n\nand another", "there are only 2 lines of text"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, content, complaint):
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    failed = preprocess("--text", path, "--dest-dir", tmp_path / "data")
    assert failed.returncode == 2
    assert complaint.format(path=path) in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_bpe_is_one_line_and_leaves_nothing(tmp_path):
    text = tmp_path / "input.txt"
    text.write_text(PARAGRAPHS, encoding="utf-8")
    failed = preprocess(
        "--text", text, "--gpt2-bpe", tmp_path / "nowhere", "--dest-dir", tmp_path / "data"
    )
    assert failed.returncode == 2
    assert str(tmp_path / "nowhere" / "encoder.json") in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [text]


def test_a_folder_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    failed = preprocess("--dest-dir", tmp_path)
    assert failed.returncode == 2
    assert contents(tmp_path) == {"precious.txt": b"mine"}


def test_a_terminated_run_leaves_nothing(tmp_path):
    running = subprocess.Popen(
        command("--dest-dir", tmp_path / "data"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path.name.startswith(".data.") for path in tmp_path.iterdir()] == [True]
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_it_was_made_from_is_recorded(default_data):
    recipe = json.loads((default_data / "recipe.json").read_text())
    assert recipe["source"] == "text" and len(recipe["sha256"]) == 64
