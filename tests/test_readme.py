"""What the README prints is what runs."""

import re
import shlex
from pathlib import Path

import data
from runs import BIN, Run

README = (data.REPOSITORY / "README.md").read_text()


def script():
    """The arguments of the README's script, and those that it says make it small."""
    diff, small = re.search(r"```diff\n(.*?)```.*?```bash\n(.*?)```", README, re.S).groups()
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    return [shlex.split(text.replace("\\\n", " ")) for text in ("\n".join(lines), small)]


def test_the_script_of_the_readme_runs_as_printed(tmp_path, english, two_nodes, monkeypatch):
    folder = tmp_path / "data-bin" / "wikitext-103"
    folder.parent.mkdir()
    folder.symlink_to(english)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    (command, *arguments), small = script()
    run = Run(tmp_path, [BIN / command, *arguments, *small])
    run.save_dir = Path("checkpoints")
    run.finish()
    assert 20 == run.events("finished")[0]["update"]
    assert {2} == {event["world_size"] for event in run.events("started")}
    assert (run.save_dir / "checkpoint_last.pt").exists()
