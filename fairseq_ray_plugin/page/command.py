"""The command `report SAVE_DIR`: what a run went through, and where its time went."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.accounting.reader import Empty
from fairseq_ray_plugin.checkpoints import stores
from fairseq_ray_plugin.report import journal


def main(arguments: list[str]) -> int:
    """The exit code; 2: there is no journal to tell of, or a file cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_ray_plugin report",
        description="What a run went through, and where its time went; also while it goes on.",
    )
    parser.add_argument("save_dir", metavar="SAVE_DIR", help="a folder, or s3://BUCKET/RUN")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures")
    parser.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev")
    args = parser.parse_args(arguments)
    shown = stores.shown(args.save_dir)
    try:
        told = account(read(args.save_dir))
        if args.html:
            from fairseq_ray_plugin.page import html

            _write(args.html, html.page(told, shown))
        if args.trace:
            from fairseq_ray_plugin.page import trace

            _write(args.trace, trace.trace(told))
    except Empty:
        print(f"fairseq_ray_plugin: {shown}: {journal.FILE_NAME} has no events", file=sys.stderr)
        return 2
    except (OSError, stores.StoreError) as error:
        print(f"fairseq_ray_plugin: {_why(error)}", file=sys.stderr)
        return 2
    if not (args.html or args.trace):
        from rich.console import Console

        from fairseq_ray_plugin.page import terminal

        terminal.show(told, shown, Console())
    return 0


def read(save_dir: str) -> list[dict[str, Any]]:
    """The lines of the journal in a save dir.

    Raises:
        OSError, StoreError: there is none, or it cannot be read.
    """
    if not stores.is_url(save_dir):
        return journal.read(os.path.join(save_dir, journal.FILE_NAME))
    content = stores.open_store(save_dir).get_bytes(journal.FILE_NAME)
    return journal.parse(content.decode(errors="replace").splitlines())


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _why(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
