"""What the command says of itself, before fairseq is imported: usage, versions, our own options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from fairseq_ray_plugin.options import add_ray_args

TRAIN = (
    "fairseq-ray-train DATA --arch NAME ... (as fairseq-train; --help lists all options, "
    "--help-ray ours)"
)
HYDRA = (
    "fairseq-ray-hydra-train [our options] ... (then as fairseq-hydra-train; --help lists all "
    "options, --help-ray ours)"
)

HELP_RAY = "--help-ray"


def refuse(error: Exception) -> NoReturn:
    """The command ends in one line, as for any option that is wrong."""
    print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
    sys.exit(2)


def answer(arguments: Sequence[str], usage: str) -> int | None:
    """What can be answered at once has been; returns the exit code, or None: go on.

    Args:
        arguments: of the command.
        usage: a line.
    """
    if not arguments:
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    if "--version" in arguments:
        print(versions())
        return 0
    if HELP_RAY in arguments:
        parser = argparse.ArgumentParser(usage=usage, add_help=False)
        add_ray_args(parser)
        parser.print_help()
        return 0
    return None


def versions() -> str:
    """This package and what it stands on, a line."""
    names = ("fairseq_ray_plugin", *_fairseqs(), "ray", "torch", "numpy")
    known = [f"{name} {version}" for name in names if (version := _version(name))]
    return ", ".join([*known, f"Python {sys.version.split()[0]}"])


def explain(parser: argparse.ArgumentParser) -> None:
    """fairseq's training parser, of which our options are the last, shows them first.

    Of its own usage, which is printed with every error, a line is left instead of 200.
    """
    groups = parser._action_groups
    groups.insert(0, groups.pop())
    parser.usage = TRAIN
    for option, purpose in (("--version", "show versions"), (HELP_RAY, "show our own options")):
        parser.add_argument(
            option,
            action="store_true",
            default=argparse.SUPPRESS,
            help=f"{purpose}, and exit",
        )
    for action in parser._actions:
        if action.dest == "arch":
            action.required = True  # fairseq only says RuntimeError


def _fairseqs() -> list[str]:
    """The distributions that bring fairseq here."""
    return sorted(set(metadata.packages_distributions().get("fairseq", ["fairseq"])))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
