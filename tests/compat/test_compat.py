"""Each patch of ``compat`` repairs real fairseq code that fails without it; fairseq's tools work.

A patch acts at import, so the checks run in child processes: see compat_checks.
"""

import json
import subprocess
import sys

import compat_checks
import pytest
from compat_checks import EXPECTED_WITHOUT_PATCH
from data import environment

from fairseq_ray_plugin import compat


def outcomes(skip: list[str]) -> dict[str, str]:
    command = [sys.executable, compat_checks.__file__, *skip]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def patched() -> dict[str, str]:
    return outcomes(skip=[])


@pytest.fixture(scope="module")
def unpatched() -> dict[str, str]:
    return outcomes(skip=[name for name in compat.PATCHES if name != "dataclass_defaults"])


@pytest.mark.parametrize("check", EXPECTED_WITHOUT_PATCH)
def test_fairseq_code_works_with_its_patch(check, patched):
    assert "ok" == patched[check]


@pytest.mark.parametrize(
    "check", [check for check, error in EXPECTED_WITHOUT_PATCH.items() if error]
)
def test_fairseq_code_fails_without_its_patch(check, unpatched):
    assert EXPECTED_WITHOUT_PATCH[check] in unpatched[check]


def test_every_patch_is_checked():
    for name in compat.PATCHES.keys() - {"dataclass_defaults"}:
        assert any(check.startswith(name) for check in EXPECTED_WITHOUT_PATCH), name


def test_fairseq_cannot_be_imported_without_the_dataclass_patch():
    process = python(
        "from fairseq_ray_plugin import compat\n"
        "compat.apply(skip={'dataclass_defaults'})\n"
        "import fairseq"
    )
    assert "mutable default" in process.stderr


def test_apply_imports_nothing_and_leaves_torch_and_numpy_alone():
    process = python(
        "import sys\n"
        "from fairseq_ray_plugin import compat\n"
        "compat.apply()\n"
        "assert not {'torch', 'numpy', 'fairseq', 'ray'} & sys.modules.keys()\n"
        "import numpy, torch\n"
        "load = torch.load\n"
        "import fairseq.checkpoint_utils\n"
        "assert load is torch.load and not hasattr(numpy, 'compat')\n"
        "assert 'ray' not in sys.modules\n"
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_a_users_configuration_may_have_a_fairseq_configuration_as_default():
    process = python(
        "from fairseq_ray_plugin import compat\n"
        "compat.apply()\n"
        "from dataclasses import dataclass\n"
        "from fairseq.dataclass import FairseqDataclass\n"
        "@dataclass\n"
        "class Inner(FairseqDataclass):\n"
        "    x: int = 1\n"
        "@dataclass\n"
        "class Outer(FairseqDataclass):\n"
        "    inner: Inner = Inner()\n"
        "assert Outer().inner.x == 1\n"
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_apply_names_the_patches_when_asked_to_skip_an_unknown_one():
    with pytest.raises(ValueError, match=r"no patch is called \['numpy'\]; there are .*numpy_nam"):
        compat.apply(skip={"numpy"})
