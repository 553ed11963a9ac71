"""What fairseq raises of data that will not do becomes a line that names the file or the option."""

import copy
import shutil

import data
import pytest
from fairseq import options, tasks
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_ray_plugin.training import unusable


@pytest.fixture
def folder(english, tmp_path):
    """A copy of the data that may be broken."""
    return shutil.copytree(english, tmp_path / "data")


@pytest.fixture(scope="module")
def cfg(english):
    parser = options.get_training_parser()
    args = [str(english), *data.LANGUAGE_MODELING]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, args))


@pytest.fixture
def reason(cfg):
    """What is said of the data in a folder, up to its first mini-batch."""

    def reason(folder, impl=None, max_tokens=None):
        task_cfg = copy.deepcopy(cfg.task)
        task_cfg.data, task_cfg.dataset_impl = str(folder), impl
        if max_tokens is not None:  # a sample is a sentence; the last block of all may be a token
            task_cfg.sample_break_mode = "eos"
        with pytest.raises(Exception) as caught:
            task = tasks.setup_task(task_cfg)
            task.load_dataset("train")
            mapped = MMapIndexedDataset(f"{folder}/train")
            unusable.check_length(mapped, f"{folder}/train")
            iterator = task.get_batch_iterator(
                task.datasets["train"],
                max_tokens=max_tokens,
                max_sentences=4,
                max_positions=max_tokens or 64,
                ignore_invalid_inputs=True,
            )
            assert iterator.first_batch
        return unusable.reason(caught.value)

    return reason


def cut(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])


def test_a_wrong_folder_is_named(reason, tmp_path):
    said = reason(tmp_path / "nowhere")
    assert said.startswith(f"{tmp_path}/nowhere/dict.txt: No such file or directory; data must")


def test_data_that_is_not_there_is_named(folder, reason):
    for path in folder.glob("train*"):
        path.unlink()
    assert f"Dataset not found: train ({folder}/train); data" in reason(folder)


@pytest.mark.parametrize("size", [0, 5, 9, 20, 1000])
def test_an_index_that_is_cut_off_is_named(folder, size, reason):
    cut(folder / "train.idx", size)
    said = reason(folder)
    assert f"{folder}/train" in said and "\n" not in said


@pytest.mark.parametrize("impl", ["mmap", None])
def test_an_index_that_is_none_is_named(folder, reason, impl):
    (folder / "train.idx").write_bytes(b"no index" * 1000)
    assert f"{folder}/train" in reason(folder, impl)


@pytest.mark.parametrize("size", [0, 1000])
def test_data_that_is_cut_off_is_named_before_it_is_read(folder, size, reason):
    cut(folder / "train.bin", size)
    assert f"{folder}/train.bin cannot be read" in reason(folder)


def test_whole_data_has_the_length_that_it_should(english):
    for split in ("train", "valid", "test"):
        unusable.check_length(MMapIndexedDataset(f"{english}/{split}"), f"{english}/{split}")


def test_a_dictionary_that_is_none_is_told(folder, reason):
    (folder / "dict.txt").write_text("no dictionary\n")
    assert "Incorrect dictionary format" in reason(folder)


def test_mini_batches_too_small_for_any_sentence_are_told_with_their_option(folder, reason):
    assert "--max-tokens" in reason(folder, max_tokens=1)


def test_other_failures_are_not_the_datas():
    for error in (ValueError("x"), KeyError("train"), OSError(5, "Input/output error", "a.bin")):
        assert unusable.reason(error) is None
