"""What the command says of itself, and of a command line that cannot be meant."""

import re
import subprocess
import sys

import data
import pytest

from fairseq_ray_plugin import usage

PROGRAM = """
import sys
from fairseq_ray_plugin import launch
try:
    launch.{}()
finally:
    print({{"ray", "torch", "fairseq"}} & set(sys.modules), file=sys.stderr)
"""


def command(function, *arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(function), *arguments],
        capture_output=True,
        text=True,
        env={**data.environment(), "RAY_ADDRESS": "local"},  # no other test's cluster
    )


@pytest.mark.parametrize("line", [usage.TRAIN, usage.HYDRA])
def test_without_arguments_there_is_a_line_of_usage(line, capsys):
    assert 2 == usage.answer([], line)
    assert f"usage: {line}\n" == capsys.readouterr().err


def test_versions_are_told_of_all_that_counts(capsys):
    assert 0 == usage.answer(["data", "--version"], usage.TRAIN)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"fairseq_ray_plugin \S+, fairseq\S* \S+, ray \S+, torch \S+, numpy \S+, Python 3\.\S+",
        line,
    )


def test_our_own_options_can_be_asked_for_alone(capsys):
    assert 0 == usage.answer(["--help-ray"], usage.TRAIN)
    text = capsys.readouterr().out
    assert "--fix-batch-size" in text and "--ray-hang-timeout" in text
    assert "--lr" not in text and len(text.splitlines()) < 70


def test_what_is_meant_for_fairseq_is_not_answered():
    assert usage.answer(["data", "--arch", "transformer"], usage.TRAIN) is None


@pytest.mark.parametrize("function", ["cli_main", "hydra_cli_main"])
def test_the_commands_answer_before_they_import_anything(function):
    result = command(function)
    assert 2 == result.returncode
    usage_line, imported = result.stderr.splitlines()
    assert usage_line.startswith("usage: fairseq-ray-") and imported == "set()"


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (("data",), "error: the following arguments are required: --arch/-a"),
        (
            ("data", "--arch", "transformer", "--nonsense"),
            "error: unrecognized arguments: --nonsense",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_two_lines(arguments, last):
    result = command("cli_main", *arguments)
    assert 2 == result.returncode
    *lines, imported = result.stderr.splitlines()
    assert lines[-1].endswith(last)
    # before it torch may warn of itself
    start = next(i for i, line in enumerate(lines) if line.startswith(f"usage: {usage.TRAIN[:30]}"))
    assert len(lines[start:]) < 4
    assert "Traceback" not in result.stderr
