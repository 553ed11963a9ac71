"""The account of a run on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairseq_ray_plugin.accounting.account import Account, Blame
from fairseq_ray_plugin.accounting.slowest import SlowRank
from fairseq_ray_plugin.accounting.spent import Spent
from fairseq_ray_plugin.page import words

BAR = 20
"""Characters of the longest bar."""

WIDE = 110
"""Columns of a terminal that has room for what the words mean."""

MOST_ROWS = 10


def show(told: Account, save_dir: str, console: Console) -> None:
    """Print it; in colour where the terminal has some."""
    console.print(Text.assemble((save_dir, "bold"), f": {words.outcome(told)}"))
    console.print(words.goodput_line(told), highlight=False, style="bold")
    console.print()
    console.print(_figures(told))
    console.print()
    console.print(_time(told, console.width >= WIDE))
    for title, blames in (("stops", told.causes), ("failures on node", told.nodes)):
        if blames:
            console.print()
            console.print(_blames(title, blames))
    if told.slowest:
        console.print()
        console.print(_slowest(told.slowest))


def _figures(told: Account) -> Table:
    table = Table.grid(padding=(0, 2))
    num_starts = len(told.story.starts)
    dropped = told.story.dropped
    lost = [("mini-batches dropped", str(dropped), "too large for a GPU's memory")]
    redone = "undone with their state, and done again" if told.updates_redone else ""
    for name, value, more in (
        ("updates", str(told.updates), ""),
        ("workers", words.sizes(told), ""),
        ("starts of the command", str(num_starts), ""),
        ("generations", str(len(told.story.generations)), ""),
        ("failures", words.failures(told), ""),
        ("recovery", words.recovery(told), "without waiting for room"),
        ("updates redone", str(told.updates_redone), redone),
        *(lost if dropped else ()),
    ):
        table.add_row(name, Text(value, "bold"), Text(more, "dim"))
    return table


def _time(told: Account, with_meanings: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("slots' time", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True, min_width=BAR)
    table.add_column("")
    whole = sum(told.spent.values())
    longest = max(told.spent.values()) or 1.0
    rows = [(Spent.PRODUCTIVE_TRAINING, told.spent[Spent.PRODUCTIVE_TRAINING]), *told.lost]
    for kind, seconds in rows:
        if seconds <= 0:
            continue
        style = "green" if kind is Spent.PRODUCTIVE_TRAINING else "yellow"
        bar = "#" * max(1, round(BAR * seconds / longest)) if seconds > 0.01 * longest else "."
        table.add_row(
            kind.value,
            words.duration(seconds),
            words.share(seconds, whole),
            Text(bar, style),
            Text(kind.meaning if with_meanings else "", "dim"),
        )
    total = f"{words.duration(told.wall_s)} x {told.slots} slots"
    table.add_row("in all", words.duration(whole), "100.0%", "", Text(total, "dim"), style="bold")
    return table


def _blames(title: str, blames: Sequence[Blame]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(title)
    for name in ("number", "slots' time", "each", "updates redone"):
        table.add_column(name, justify="right")
    for blame in blames[:MOST_ROWS]:
        table.add_row(
            blame.what[:12],
            str(blame.count),
            words.duration(blame.slot_seconds),
            words.duration(blame.slot_seconds / blame.count),
            str(blame.updates_redone),
        )
    if len(blames) > MOST_ROWS:
        table.add_row(f"{len(blames) - MOST_ROWS} more", style="dim")
    return table


def _slowest(ranks: Sequence[SlowRank]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("slowest ranks")
    for name in ("rank", "mini-batch", "of it data", "over median", "times named"):
        table.add_column(name, justify="right")
    for there in ranks[:MOST_ROWS]:
        table.add_row(*words.slow(there), style="bold yellow" if there.num_named else None)
    if len(ranks) > MOST_ROWS:
        table.add_row(f"{len(ranks) - MOST_ROWS} more", style="dim")
    return table
