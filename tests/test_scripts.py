"""``python -m fairseq_ray_plugin run``: a script that imports fairseq runs as by Python itself."""

import subprocess
import sys

import pytest
from data import environment, run_tool

SCRIPT = """
import json, multiprocessing, os, sys
import helper
import fairseq.options

def double(number):
    import fairseq.checkpoint_utils
    return 2 * number

if __name__ == "__main__":
    spec = __spec__ and __spec__.name
    print(json.dumps([__name__, spec, os.path.basename(__file__), sys.argv, sys.path[0]]))
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.map(double, [21]), multiprocessing.current_process().name)
    sys.exit(7)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("")
    return tmp_path


def python(folder, *command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", ["script", "module"])
def test_a_script_and_the_processes_it_starts_import_fairseq(how, folder):
    script = ["-m", "script"] if how == "module" else [folder / "script.py"]
    process = python(folder, "-m", "fairseq_ray_plugin", "run", *script, "--option", "value")
    facts, *pools = process.stdout.splitlines()
    assert ["spawn [42] MainProcess", "forkserver [42] MainProcess"] == pools, process.stderr
    assert 7 == process.returncode
    # as Python itself has it, which cannot import fairseq
    (folder / "fairseq").mkdir()
    (folder / "fairseq" / "__init__.py").write_text("")
    (folder / "fairseq" / "options.py").write_text("")
    stock = python(folder, *script, "--option", "value")
    assert stock.stdout.splitlines()[0] == facts


def test_run_without_a_script_is_one_line_and_exit_status_2(folder):
    process = python(folder, "-m", "fairseq_ray_plugin", "run")
    assert 2 == process.returncode
    assert "usage: python -m fairseq_ray_plugin run [-m] SCRIPT ...\n" == process.stderr


def test_scripts_are_named_where_the_tools_are():
    assert "run SCRIPT" in run_tool("--help")
