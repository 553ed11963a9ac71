"""Data that is not the same on all nodes: one line, within seconds, and no second try."""

import contextlib
import shutil
import subprocess

import data
import psutil
import pytest
from runs import BIN, ray_train

LIMIT_S = 5
"""From the start of the ranks to the end of the run."""

OPTIONS = (*data.MASKED_LM, "--max-update", "5", "--ray-min-workers", "2")


class Differing:
    """A node as any, and one that sees `there` in place of `here`, the data."""

    def __init__(self, nodes, here, there):
        self.nodes, self.here, self.there = nodes, here, there
        self.undo = contextlib.ExitStack()

    def start(self):
        self.nodes.add()
        join = [BIN / "ray", "start", "--address", self.nodes.address, "--num-cpus=1", "--block"]
        mount = f'mount --bind {self.there} {self.here} && exec "$@"'
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, "sh", *join], stdout=subprocess.DEVNULL
        )
        self.undo.callback(self._end, psutil.Process(process.pid))

    def _end(self, node):
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [node, *node.children(recursive=True)]:
                process.kill()


@pytest.fixture
def differing(nodes, english, tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    here, there = (shutil.copytree(english, tmp_path / name) for name in ("here", "there"))
    differing = Differing(nodes, here, there)
    with differing.undo:
        yield differing


def last_line(tmp_path, differing):
    """What a run of two workers says at last, which is not to try twice."""
    differing.start()
    run = ray_train(tmp_path, differing.here, OPTIONS, address=differing.nodes.address)
    assert 1 == run.wait()
    (begin,), (end,) = run.events("beginning"), run.events("failed")
    assert end["time"] - begin["time"] < LIMIT_S
    assert 0 == len(run.steps())
    assert "Traceback" not in run.output
    return [line for line in run.lines if "fairseq_ray_plugin" in line][-1]


def test_other_words_behind_the_same_numbers_are_refused(tmp_path, differing):
    dictionary = differing.there / "dict.txt"
    first, second, *rest = dictionary.read_text().splitlines()
    dictionary.write_text("\n".join([second, first, *rest]) + "\n")
    line = last_line(tmp_path, differing)
    assert f"the dictionaries in {differing.here} are not the same on all nodes" in line


def test_data_that_one_node_alone_has_is_named(tmp_path, differing):
    shutil.rmtree(differing.there)
    differing.there.mkdir()
    line = last_line(tmp_path, differing)
    assert f"{differing.here}/dict.txt: No such file or directory" in line
    assert "data must be there on every node" in line
