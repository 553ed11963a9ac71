"""What is in a wheel, and in a source distribution."""

import shutil
import subprocess
import sys
import tarfile
import zipfile

import data
import pytest

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""
FOLDERS = ("fairseq_ray_plugin", "tests", "examples", "benchmarks", "docs", "website")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel, and in the source distribution."""
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(data.REPOSITORY / name, checkout / name, ignore=ignored)
    for path in data.REPOSITORY.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, checkout)
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, check=True, cwd=checkout, capture_output=True)
    ((wheel,), (source,)) = (list(folder.glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as sources:
        parts = (name.partition("/")[2] for name in sources.getnames())
        return set(archive.namelist()), set(parts)


def test_a_wheel_says_that_the_package_is_typed_and_has_nothing_else(built):
    wheel, _ = built
    assert "fairseq_ray_plugin/py.typed" in wheel
    assert {"fairseq_ray_plugin"} == {name.split("/")[0].split("-")[0] for name in wheel}


def test_a_source_distribution_has_what_its_tests_need(built):
    _, source = built
    for folder in FOLDERS:
        for path in (data.REPOSITORY / folder).rglob("*.*"):
            if path.is_file() and path.suffix != ".pyc":
                assert str(path.relative_to(data.REPOSITORY)) in source
    assert {"Makefile", "constraints.txt", "mkdocs.yml", "pyproject.toml"} <= source
