"""Each patch of ``compat`` repairs real fairseq code that fails without it; fairseq's tools work.

A patch acts at import, so the checks run in child processes: see compat_checks.
"""

import json
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import compat_checks
import pytest
from compat_checks import EXPECTED_WITHOUT_PATCH
from data import environment

from fairseq_ray_plugin import compat
from fairseq_ray_plugin.compat import versions

TO_IMPORT_FAIRSEQ = {"dataclass_defaults", "typing_io", "hydra_plugins"}
"""Patches without which nothing else can be tried on one Python or another."""


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
    return outcomes(skip=[name for name in compat.PATCHES if name not in TO_IMPORT_FAIRSEQ])


@pytest.mark.parametrize("check", EXPECTED_WITHOUT_PATCH)
def test_fairseq_code_works_with_its_patch(check, patched):
    assert "ok" == patched[check]


@pytest.mark.parametrize(
    "check", [check for check, error in EXPECTED_WITHOUT_PATCH.items() if error]
)
def test_fairseq_code_fails_without_its_patch(check, unpatched):
    assert EXPECTED_WITHOUT_PATCH[check] in unpatched[check]


def test_every_patch_is_checked():
    for name in compat.PATCHES.keys() - TO_IMPORT_FAIRSEQ:
        assert any(check.startswith(name) for check in EXPECTED_WITHOUT_PATCH), name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 takes such defaults")
def test_fairseq_cannot_be_imported_without_the_dataclass_patch():
    process = python(
        "from fairseq_ray_plugin import compat\n"
        "compat.apply(skip={'dataclass_defaults'})\n"
        "import fairseq"
    )
    assert "mutable default" in process.stderr


@pytest.mark.parametrize(
    ("name", "since", "error"),
    [
        ("typing_io", (3, 13), "No module named 'typing.io'"),
        ("hydra_plugins", (3, 12), "no attribute 'find_module'"),
    ],
)
def test_hydra_works_with_its_patches_alone(name, since, error):
    program = (
        "from fairseq_ray_plugin import compat\n"
        "compat.apply(skip={!r})\n"
        "from hydra.experimental import compose, initialize\n"
        "with initialize(): compose()"
    )
    assert 0 == python(program.format(())).returncode
    without = python(program.format((name,)))
    if sys.version_info >= since:
        assert error in without.stderr
    else:
        assert 0 == without.returncode


@pytest.mark.parametrize(
    ("scan", "patched"),
    [
        (lambda importer: importer.find_module("x"), True),
        (lambda importer: (importer.find_module("x"), importer.find_spec("x")), False),
        (lambda importer: importer.find_spec("x"), False),
    ],
    ids=["hydra 1.0", "hydra 1.3", "hydra to come"],
)
def test_a_hydra_that_knows_current_python_finds_its_plugins_itself(scan, patched):
    plugins = SimpleNamespace(_scan_all_plugins=scan)
    module = SimpleNamespace(Plugins=plugins, pkgutil=pkgutil)
    versions.find_plugins_of_hydra(module)
    assert patched == (module.pkgutil is not pkgutil)


def test_apply_imports_nothing_and_leaves_torch_and_numpy_alone():
    process = python(
        "import sys\n"
        "from fairseq_ray_plugin import compat\n"
        "compat.apply()\n"
        "assert not {'torch', 'numpy', 'fairseq', 'ray'} & sys.modules.keys()\n"
        "import numpy, torch\n"
        "load, names = torch.load, hasattr(numpy, 'compat')\n"
        "import fairseq.checkpoint_utils\n"
        "assert load is torch.load and hasattr(numpy, 'compat') == names\n"
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
