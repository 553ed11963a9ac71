"""``python -m fairseq_ray_plugin``: stock fairseq's tools work from raw text to translations."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data import (
    LANGUAGE_MODELING,
    MASKED_LM,
    TRANSLATION,
    english_text,
    environment,
    parallel_text,
    run_tool,
)

pytestmark = pytest.mark.slow

UNSUMMABLE_CRITERION = """
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion


@register_criterion("unsummable")
class Unsummable(CrossEntropyCriterion):
    @staticmethod
    def logging_outputs_can_be_summed():
        return False
"""


@pytest.fixture(scope="module")
def translation_data(tmp_path_factory) -> Path:
    return parallel_text(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def english_data(tmp_path_factory) -> Path:
    return english_text(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="module")
def translation_model(translation_data, tmp_path_factory) -> Path:
    """A checkpoint that was trained for 20 updates and, resumed, for 10 more."""
    save_dir = tmp_path_factory.mktemp("translation")
    train = [translation_data, "--save-dir", save_dir, *TRANSLATION, "--report-accuracy"]
    run_tool("train", *train, "--max-update", 20, "--disable-validation")
    log = run_tool(
        *("train", *train, "--max-update", 30, "--eval-bleu", "--eval-bleu-args", '{"beam": 5}'),
        *("--user-dir", "fairseq_ray_plugin"),
    )
    assert list(range(21, 31)) == updates(log)
    assert "valid_bleu" in log and "valid_accuracy" in log
    return save_dir / "checkpoint_last.pt"


def updates(log: str) -> list[int]:
    """The number of every update in fairseq's json log, in order."""
    lines = [line for line in log.splitlines() if "| train_inner |" in line]
    return [int(re.search(r'"num_updates": "(\d+)"', line).group(1)) for line in lines]


def norms(log: str) -> list[float]:
    """The gradient norm of every update."""
    return [float(norm) for norm in re.findall(r'"gnorm": "([\d.]+)"', log)]


def train_on_two_processes(*arguments: object) -> str:
    """torchrun has run training in two gloo processes; rank 0's log is returned."""
    with socket.socket() as any_free_port:
        any_free_port.bind(("127.0.0.1", 0))
        port = any_free_port.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_port", str(port), "-m", "fairseq_ray_plugin", "train"),
        *map(str, arguments),
    ]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    log = process.stdout + process.stderr
    assert process.returncode == 0, log[-6000:]
    return log


def test_generate_translates_padded_batches_with_a_post_norm_model(
    translation_data, translation_model
):
    options = ["--path", translation_model, "--beam", 5, "--cpu", "--max-tokens", 1000]
    log = run_tool("generate", translation_data, "--gen-subset", "test", *options)
    assert 200 == len(re.findall(r"^H-\d+\t", log, re.MULTILINE))
    assert "BLEU4 = " in log


def test_interactive_translates_standard_input(translation_data, translation_model):
    options = ["--path", translation_model, "--beam", 5, "--cpu", "--buffer-size", 2]
    log = run_tool(
        "interactive", translation_data, *options, stdin="seven hundred and one\nsixty\n"
    )
    assert 2 == len(re.findall(r"^H-\d+\t", log, re.MULTILINE))


def test_validate_reports_the_loss(translation_data, translation_model):
    options = ["--path", translation_model, "--task", "translation", "--cpu", "--max-tokens", 1000]
    assert "valid | " in run_tool("validate", translation_data, *options, "--log-format", "simple")


def test_score_gives_full_marks_to_the_reference(translation_data):
    reference = translation_data.parent / "test.fr"
    score = ["score", "--sys", reference, "--ref", reference]
    assert "BLEU4 = 100.00" in run_tool(*score)
    assert "BLEU = 100.00" in run_tool(*score, "--sacrebleu")


def test_a_language_model_trains_and_is_evaluated(english_data, tmp_path):
    train = [english_data, "--save-dir", tmp_path, *LANGUAGE_MODELING]
    assert [1, 2, 3] == updates(run_tool("train", *train, "--max-update", 3))
    log = run_tool(
        *("eval-lm", english_data, "--path", tmp_path / "checkpoint_last.pt", "--cpu"),
        *("--gen-subset", "test", "--tokens-per-sample", 64, "--max-tokens", 1000),
    )
    assert 0 < int(re.search(r"Evaluated ([\d,]+) tokens", log).group(1).replace(",", ""))


def test_a_masked_language_model_trains_on_whole_sentences(english_data, tmp_path):
    train = [english_data, "--save-dir", tmp_path, *MASKED_LM, "--sample-break-mode", "eos"]
    log = run_tool("train", *train, "--max-update", 3, "--disable-validation")
    assert [1, 2, 3] == updates(log)


@pytest.mark.parametrize("precision", ["--fp16", "--bf16"])
def test_16_bits_train_on_a_cpu_with_flat_gradients_as_without(
    precision, translation_data, tmp_path
):
    train = ["train", translation_data, *TRANSLATION, precision, "--max-update", 5]
    flat, apart = (
        run_tool(*train, "--save-dir", tmp_path / str(len(options)), *options)
        for options in ([], ["--fp16-no-flatten-grads"])
    )
    assert [1, 2, 3, 4, 5] == updates(flat)
    # the gradients reach the optimizer, whose sums have another order
    assert norms(apart) == pytest.approx(norms(flat), rel=1e-2)


BART = [
    *TRANSLATION[: TRANSLATION.index("--task")],
    *TRANSLATION[TRANSLATION.index("--encoder-layers") : TRANSLATION.index("--criterion")],
    *("--criterion", "cross_entropy", "--max-update", "2"),
]


def test_bart_is_pre_trained_and_translates(
    english_data, parallel_data_of_one_dictionary, tmp_path
):
    log = run_tool(
        *("train", english_data, "--save-dir", tmp_path / "denoising", *BART),
        *("--task", "denoising", "--arch", "bart_base", "--tokens-per-sample", 64),
        *("--mask", 0.3, "--mask-length", "span-poisson", "--replace-length", 1),
        *("--batch-size", 4),
    )
    assert [1, 2] == updates(log)
    log = run_tool(
        *("train", parallel_data_of_one_dictionary, "--save-dir", tmp_path / "translation", *BART),
        *("--task", "translation_from_pretrained_bart", "--arch", "mbart_base"),
        *("--langs", "en,fr", "--max-tokens", 500),
    )
    assert [1, 2] == updates(log)


@pytest.fixture(scope="module")
def parallel_data_of_one_dictionary(translation_data, tmp_path_factory) -> Path:
    text, binarized = translation_data.parent, tmp_path_factory.mktemp("joined")
    run_tool(
        *("preprocess", "--joined-dictionary", "-s", "en", "-t", "fr", "--destdir", binarized),
        *("--trainpref", text / "train", "--validpref", text / "valid"),
    )
    return binarized


def test_two_processes_train_and_resume_with_either_ddp(translation_data, tmp_path):
    # also gathers the logging outputs as lists, which the usual criterions do not need
    plugin = tmp_path / "unsummable_plugin"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(UNSUMMABLE_CRITERION)
    smoothing = TRANSLATION.index("--label-smoothing")
    train = [
        *(translation_data, "--save-dir", tmp_path / "checkpoints", "--disable-validation"),
        *TRANSLATION[:smoothing],
        *TRANSLATION[smoothing + 2 :],
        *("--user-dir", plugin, "--criterion", "unsummable"),
    ]
    log = train_on_two_processes(*train, "--max-update", 3, "--ddp-backend", "legacy_ddp")
    assert [1, 2, 3] == updates(log)
    pytorch_ddp = ["--ddp-backend", "pytorch_ddp", "--find-unused-parameters"]
    log = train_on_two_processes(*train, "--max-update", 5, *pytorch_ddp)
    assert [4, 5] == updates(log)


def test_without_fairseq_there_is_one_line_that_says_how_to_get_it():
    # -S: nothing that pip has installed can be imported
    command = [sys.executable, "-S", "-m", "fairseq_ray_plugin", "train"]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert 2 == process.returncode
    assert "no fairseq is installed here" in process.stderr
    assert 1 == process.stderr.count("\n")


def test_an_unknown_tool_is_one_line_and_exit_status_2():
    command = [sys.executable, "-m", "fairseq_ray_plugin", "translate"]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert 2 == process.returncode
    assert process.stderr.startswith("fairseq_ray_plugin: no tool 'translate'; the tools are ")
    assert 1 == process.stderr.count("\n")


def test_checkpoints_are_listed_and_a_damaged_one_is_exit_status_1(tmp_path):
    torch.save({}, tmp_path / "embeddings.pt")
    assert 1 == run_tool("checkpoints", tmp_path).count("\n"), "the heading"
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK")
    command = [sys.executable, "-m", "fairseq_ray_plugin", "checkpoints"]
    for arguments, code, text in (
        ([tmp_path], 1, "damaged: it is cut short"),
        ([tmp_path / "nowhere"], 2, "nowhere: No such file or directory"),
        ([], 2, "usage: python -m fairseq_ray_plugin checkpoints SAVE_DIR"),
    ):
        process = subprocess.run(
            [*command, *map(str, arguments)], env=environment(), capture_output=True, text=True
        )
        assert code == process.returncode
        assert text in process.stdout + process.stderr


def test_help_lists_the_tools():
    assert re.search(r"^  generate +translate", run_tool("--help"), re.MULTILINE)
