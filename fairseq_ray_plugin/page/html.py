"""The account of a run as one page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fairseq_ray_plugin.accounting.account import Account, Blame
from fairseq_ray_plugin.accounting.story import Stop
from fairseq_ray_plugin.page import charts, words
from fairseq_ray_plugin.page.style import PATTERNS, STYLE

MOST_FAILURES = 60
"""So many are told in full, the dearest; all of them are in the journal."""

MOST_TEXT = 100_000
"""Characters of tracebacks and stacks in all."""

TEXT = 6_000
"""Of one of them."""

MOST_ROWS = 12
MOST_EVENTS = 150


def page(told: Account, save_dir: str) -> str:
    """The whole page."""
    lanes, num_more = charts.slots(told)
    losses = charts.losses(told)
    parts = [
        f"<h1>{escape(save_dir)}</h1>",
        f'<p class="dim">{escape(words.outcome(told))}; {words.clock(told.story.begin)} to '
        f"{words.clock(told.story.end)} UTC</p>",
        _tiles(told),
        "<h2>Workers</h2>",
        charts.workers(told),
        _legend(_EVENTS),
    ]
    if losses is not None:
        parts += ["<h2>Loss and learning rate</h2>", losses, _legend(_LINES)]
    parts += [
        "<h2>Where the time of the slots went</h2>",
        charts.lost(told),
        f'<p class="dim">In all {words.duration(told.wall_s)} of wall clock times {told.slots} '
        "slots, the most that there were at once. Goodput is training's share of the time of the "
        "slots that were there.</p>",
        "<h2>Slots</h2>",
        lanes,
        _legend(_SLOTS),
    ]
    if num_more:
        parts.append(f'<p class="dim">and {num_more} more</p>')
    parts += _stops(told)
    parts += _slowest(told)
    parts += _checkpoints(told)
    parts += _events(told)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(save_dir)}</title>\n<style>{STYLE}</style></head><body>\n{PATTERNS}\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _tiles(told: Account) -> str:
    recovery = told.recovery_s(0.5, 1.0)
    tiles = [
        (f"{100 * told.goodput:.1f}%", "goodput"),
        (f"{told.updates:,}", f"updates, {told.updates_redone} of them redone"),
        (words.duration(told.wall_s), _plural(len(told.story.starts), "start", " of the command")),
        (_sizes(told), "workers"),
        (str(len(told.failures)), _how_often(told)),
    ]
    if recovery:
        said = f"recovery, worst {words.duration(recovery[1])}"
        tiles.append((words.duration(recovery[0]), said))
    there = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in tiles
    )
    return f'<div class="tiles">{there}</div>'


def _sizes(told: Account) -> str:
    if len(told.sizes) <= 3:
        return words.sizes(told)
    return f"{min(told.sizes)} to {max(told.sizes)}"


def _how_often(told: Account) -> str:
    if told.between_failures_s is None:
        return "failures"
    return f"failures, one every {words.duration(told.between_failures_s)}"


def _plural(count: int, what: str, more: str = "") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}{more}"


_EVENTS = (
    ('<use href="#fault" x="11" y="7"/>', "failure"),
    ('<use href="#planned" x="11" y="7"/>', "planned stop"),
    ('<use href="#notice" x="11" y="8"/>', "notice, waiting, left out, slow"),
    ('<use href="#check" x="11" y="2"/>', "checkpoint"),
    ('<use href="#end" x="11" y="7"/>', "end"),
)
_LINES = (
    ('<path class="line" d="M0 7h22"/>', "loss"),
    ('<path class="line2" d="M0 7h22"/>', "learning rate"),
    ('<path class="restart" d="M11 0v13"/>', "restart"),
)
_SLOTS = tuple(
    (f'<rect class="{kind}" x="1" y="1" width="20" height="11"/>', said)
    for kind, said in (
        ("train", "training"),
        ("load", "fork and load"),
        ("stall", "coming to rest, saving"),
        ("start", "starting"),
        ("idle", "not used"),
    )
) + (('<use href="#fault" x="11" y="7"/>', "failure on its node"),)


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    there = "".join(
        f'<span><svg viewBox="0 0 22 13">{shape}</svg> {said}</span>' for shape, said in entries
    )
    return f'<div class="legend">{there}</div>'


# stops, and whose they are


def _stops(told: Account) -> Iterable[str]:
    if told.causes:
        yield "<h2>What stops cost</h2>"
        yield _blames("cause", told.causes)
    if told.nodes:
        yield "<h2>Nodes on which failures began</h2>"
        yield _blames("node", told.nodes)
    failures = sorted(told.failures, key=lambda stop: -stop.cost)
    if not failures:
        return
    yield "<h2>Failures</h2>"
    if len(failures) > MOST_FAILURES:
        yield (
            f'<p class="dim">The {MOST_FAILURES} that cost most of {len(failures)}; all are in '
            "elastic.jsonl.</p>"
        )
    room = MOST_TEXT
    for stop in sorted(failures[:MOST_FAILURES], key=lambda stop: stop.at):
        text = _evidence(stop)[:room]
        room -= len(text)
        yield _failure(stop, text, told)


def _blames(title: str, blames: Sequence[Blame]) -> str:
    rows = [
        f"<tr><td>{escape(blame.what[:24])}</td><td class=n>{blame.count}</td>"
        f"<td class=n>{words.duration(blame.slot_seconds)}</td>"
        f"<td class=n>{words.duration(blame.slot_seconds / blame.count)}</td>"
        f"<td class=n>{blame.updates_redone}</td></tr>"
        for blame in blames[:MOST_ROWS]
    ]
    more = len(blames) - MOST_ROWS
    return (
        f'<div class="scroll"><table><tr><th>{title}<th class=n>number<th class=n>slots\' time'
        f"<th class=n>each<th class=n>updates redone</tr>{''.join(rows)}</table></div>"
        + (f'<p class="dim">and {more} more</p>' if more > 0 else "")
    )


def _evidence(stop: Stop) -> str:
    """The first cause: what was raised, or what the ranks of a hang were doing."""
    texts = [stop.traceback] if stop.traceback else []
    texts += [f"{line.get('cause')}\n{line.get('stacks')}" for line in stop.stacks]
    return "\n\n".join(text if len(text) <= TEXT else "..." + text[-TEXT:] for text in texts)


def _failure(stop: Stop, text: str, told: Account) -> str:
    at = words.duration(stop.at - told.story.begin)
    seconds = "-" if stop.seconds is None else words.duration(stop.seconds)
    head = escape(f"{at}, update {stop.update}: {words.first_line(stop.cause)}")
    facts = [
        f"{words.clock(stop.at)} UTC, generation {stop.generation}",
        f"training stood still for {seconds}, {words.duration(stop.cost)} of slots' time",
        *(f"{words.duration(s)} {kind.value}" for kind, s in stop.spent.items() if s > 0),
    ]
    if stop.updates_redone:
        facts.append(f"{stop.updates_redone} updates were undone")
    body = f'<p class="dim">{escape("; ".join(facts))}</p>'
    return (
        f"<details><summary>{head}</summary>{body}"
        + (f"<pre>{escape(text)}</pre>" if text else "")
        + "</details>"
    )


# lists


def _slowest(told: Account) -> Iterable[str]:
    if not told.slowest:
        return
    rows = []
    for there in told.slowest[:MOST_ROWS]:
        node, *values = map(escape, words.slow(there))
        node = f"<b>{node}</b>" if there.num_named else node
        rows.append(f"<tr><td>{node}{''.join(f'<td class=n>{value}' for value in values)}</tr>")
    yield "<h2>Slowest ranks</h2>"
    yield (
        "<p class=dim>What a mini-batch took them without waiting for others, beside the median "
        "rank. Named: over 30% more for a minute.</p><div class=scroll><table><tr><th>node"
        "<th class=n>rank<th class=n>mini-batch<th class=n>of it data<th class=n>over median"
        f"<th class=n>times named</tr>{''.join(rows)}</table></div>"
    )


def _checkpoints(told: Account) -> Iterable[str]:
    there = [event for event in told.story.events if event["kind"] == "checkpoint"]
    if not there:
        return
    last = there[-1]
    age = words.duration(told.story.end - last["time"])
    yield "<h2>Checkpoints</h2>"
    yield (
        f"<p>{len(there)} written; the last, after update {last.get('update')}, {age} before the "
        f"end: {escape(str(last.get('path')))}</p>"
    )
    rows = [
        f"<tr><td class=n>{words.duration(e['time'] - told.story.begin)}"
        f"<td class=n>{e.get('update')}<td>{escape(str(e.get('path')))}</tr>"
        for e in there[-MOST_ROWS:]
    ]
    yield (
        f"<details><summary>the last {len(rows)}</summary><div class=scroll><table><tr>"
        f"<th class=n>after<th class=n>update<th>path</tr>{''.join(rows)}</table></div></details>"
    )


def _events(told: Account) -> Iterable[str]:
    there = [e for e in told.story.events if charts.kind_of(e) or e["kind"] == "advanced"]
    rows = []
    for event in there[-MOST_EVENTS:]:
        cause = words.first_line(event.get("cause") or "", 110)
        numbers = (event.get(name) for name in ("generation", "world_size", "update"))
        rows.append(
            f"<tr><td class=n>{words.duration(event['time'] - told.story.begin)}"
            f"<td>{escape(event['kind'])}{''.join(f'<td class=n>{n}' for n in numbers)}"
            f"<td>{escape(cause)}</tr>"
        )
    yield "<h2>Events</h2>"
    yield (
        f"<details><summary>the last {len(rows)} of {len(there)}</summary><div class=scroll><table>"
        "<tr><th class=n>after<th>event<th class=n>generation<th class=n>workers<th class=n>update"
        f"<th>cause</tr>{''.join(rows)}</table></div></details>"
    )
