"""The table of docs/options.md, from the parser: `python website/options_page.py` writes it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from fairseq_ray_plugin.options import add_ray_args

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
DEFAULT = re.compile(r" \(default: ([^)]*)\)$")


def table() -> str:
    """A row for each of our options, in the parser's order."""
    rows = ["| option | meaning | default |", "|---|---|---|"]
    parser = argparse.ArgumentParser(add_help=False)
    for action in add_ray_args(parser)._group_actions:
        value = f" {action.metavar}" if action.nargs != 0 else ""
        text = (action.help or "").replace("%%", "%").replace("|", "\\|")
        default = DEFAULT.search(text)
        cells = (
            f"`{'`, `'.join(action.option_strings)}{value}`",
            re.sub(r"(--[\w-]+)", r"`\1`", DEFAULT.sub("", text)),
            default.group(1) if default else "off",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page(before: str) -> str:
    """The page with today's table in the place of the one it has."""
    return re.sub(r"\| option \|(?:.*\n)+?(?!\|)", lambda _: table(), before, count=1)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
