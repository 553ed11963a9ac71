"""The pages on clusters tell commands that Ray and this package have."""

import re
import shlex

import pytest
from data import REPOSITORY

from fairseq_ray_plugin.aws import command as aws

PAGES = ("aws", "clusters", "kubernetes")


def commands(page, beginning):
    """The arguments of all commands of the page's blocks that begin so."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text().replace("\\\n", " ")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines()
    mine = [line for line in lines if line.startswith(beginning + " ")]
    return [shlex.split(line.removeprefix(beginning), comments=True) for line in mine]


@pytest.mark.parametrize("page", PAGES)
def test_ray_has_the_commands_and_their_options(page):
    import click
    from ray.scripts import scripts

    told = commands(page, "ray")
    assert told
    for arguments in told:
        command, path = scripts.cli, list(arguments)
        while isinstance(command, click.Group):
            command = command.commands[path.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        ours = path.index("--") if "--" in path else len(path)
        given = {part.partition("=")[0] for part in path[:ours] if part.startswith("-")}
        assert given <= known, f"ray {shlex.join(arguments)}"


def test_the_command_takes_what_its_page_gives_it():
    told = commands("aws", "python -m fairseq_ray_plugin aws")
    assert {"prepare", "clean"} == {aws._parser().parse_args(given).verb for given in told}
