"""The pictures of the page: workers and events, losses, lost time, slots."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from fairseq_ray_plugin.accounting.account import Account
from fairseq_ray_plugin.accounting.spent import Spent
from fairseq_ray_plugin.accounting.story import Generation, Line, Point, Story, is_planned
from fairseq_ray_plugin.page import lanes, words
from fairseq_ray_plugin.page.svg import (
    INNER,
    LEFT,
    line,
    mark,
    path,
    picture,
    rectangle,
    text,
    ticks,
    time_axis,
)

MARKS_APART = 9
"""Pixels; events of a kind that are nearer are one mark."""

MOST_POINTS = 500
MOST_LANES = 48
MOST_RESTARTS = 60
"""More of them are short: nothing could be seen behind them."""

MOST_RUNS = 9000
"""Stretches of lanes: they are drawn more coarsely rather than make the page large."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """From times to pixels."""

    begin: float
    seconds: float

    def x(self, at: float) -> float:
        share = (at - self.begin) / self.seconds if self.seconds else 0.0
        return LEFT + INNER * min(1.0, max(0.0, share))


def scale_of(story: Story) -> Scale:
    return Scale(story.begin, story.end - story.begin)


# workers over time, and what happened


def workers(told: Account) -> str:
    """World size over time, with every event on it."""
    story, scale = told.story, scale_of(told.story)
    top, bottom = 30.0, 190.0
    most = max([told.slots, *told.sizes])

    def y(size: float) -> float:
        return bottom - (bottom - top) * size / most

    parts = [line(LEFT, y(n), LEFT + INNER, y(n)) for n in ticks(0, most, 4) if n == int(n)]
    parts += [text(LEFT - 8, y(n) + 4, f"{n:g}", "end") for n in ticks(0, most, 4) if n == int(n)]
    outline = _steps(story, scale, y)
    parts.append(path([(LEFT, bottom), *outline, (outline[-1][0], bottom)], "area"))
    parts.append(path(outline, "line"))
    parts += _marks(told, scale, top, bottom)
    parts += time_axis(bottom + 14, scale.seconds)
    what = f"workers over {words.duration(told.wall_s)}: {words.sizes(told)}"
    return picture(bottom + 38, parts, what)


def _steps(story: Story, scale: Scale, y: object) -> list[tuple[float, float]]:
    """The outline of the world size, without what is narrower than a pixel."""
    assert callable(y)
    points: list[tuple[float, float]] = [(LEFT, y(0))]
    for generation in story.generations:
        if generation.started is None and generation.advanced is None:
            continue
        begin = scale.x(generation.begin)
        end = scale.x(story.end if generation.end is None else generation.end)
        last, height = points[-1]
        if begin - last >= 1:
            points += [(last, y(0)), (begin, y(0))]
        elif end - last < 1 and len(points) > 1:
            continue
        points += [(max(last, begin), y(generation.world_size)), (end, y(generation.world_size))]
    return [*points, (points[-1][0], y(0)), (scale.x(story.end), y(0))]


_NOTICES = ("notice", "left out", "slow", "unfit", "removed", "unsaved", "taken over", "waiting")


def kind_of(event: Line) -> str | None:
    """The shape of an event on the page; None: it has none."""
    kind = event["kind"]
    if kind == "stopped":
        return "planned" if is_planned(event.get("cause") or "") else "fault"
    if kind == "checkpoint":
        return "check"
    if "exit_code" in event:
        return "end"
    return "notice" if kind in _NOTICES else None


_HEIGHTS = {"fault": -16.0, "planned": -16.0, "notice": -16.0, "end": 0.0, "check": 2.0}


def _marks(told: Account, scale: Scale, top: float, bottom: float) -> Iterable[str]:
    there: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for event in told.story.events:
        shape = kind_of(event)
        if shape is not None:
            there[shape, int(scale.x(event["time"]) / MARKS_APART)].append(event)
    for (shape, _), events in there.items():
        x = sum(scale.x(e["time"]) for e in events) / len(events)
        y = {"check": bottom + 2, "end": bottom - 4}.get(shape, top + _HEIGHTS[shape])
        said = [_say(event, told) for event in events[:4]]
        if len(events) > 4:
            said.append(f"and {len(events) - 4} more")
        yield mark(shape, x, y, "\n".join(said))


def _say(event: Line, told: Account) -> str:
    at = words.duration(event["time"] - told.story.begin)
    cause = words.first_line(event.get("cause") or event["kind"], 90)
    return f"{at}, update {event.get('update')}: {cause if cause != event['kind'] else ''}".rstrip(
        ": "
    ) + ("" if event.get("cause") else f" {event['kind']}")


# losses


def losses(told: Account) -> str | None:
    """Loss and learning rate over updates, with restarts; None: nothing was logged."""
    points = [p for p in told.story.points if p.loss is not None]
    if len(points) < 2:
        return None
    points = points[:: max(1, len(points) // MOST_POINTS)] + points[-1:]
    top, bottom = 14.0, 210.0
    first, last = 0, max(1, points[-1].update)
    values = [p.loss for p in points if p.loss is not None]
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 1, high + 1)

    def x(update: float) -> float:
        return LEFT + INNER * (update - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for value in ticks(low, high, 5):
        parts += [
            line(LEFT, y(value), LEFT + INNER, y(value)),
            text(LEFT - 8, y(value) + 4, f"{value:g}", "end"),
        ]
    parts += _restarts(told, x, top, bottom)
    parts += _learning_rate(points, x, top, bottom)
    parts.append(path([(x(p.update), y(p.loss)) for p in points if p.loss is not None], "line"))
    parts.append(line(LEFT, bottom + 6, LEFT + INNER, bottom + 6))
    for update in ticks(first, last, 8):
        parts.append(text(x(update), bottom + 23, f"{update:g}", "middle"))
    parts.append(text(LEFT + INNER, bottom + 40, "updates", "end"))
    what = f"loss from {values[0]:g} to {values[-1]:g} over {last} updates"
    return picture(bottom + 44, parts, what)


def _restarts(told: Account, x: object, top: float, bottom: float) -> Iterable[str]:
    assert callable(x)
    places = {round(x(generation.source or 0)) for generation in told.story.generations[1:]}
    are_few = len(places) <= MOST_RESTARTS
    for at in sorted(places):
        if LEFT <= at <= LEFT + INNER and are_few:
            yield line(at, top, at, bottom + 6, "restart")
        elif LEFT <= at <= LEFT + INNER:
            yield line(at, bottom + 6, at, bottom + 1, "restarts")


def _learning_rate(points: list[Point], x: object, top: float, bottom: float) -> Iterable[str]:
    assert callable(x)
    rates = [(p.update, p.lr) for p in points if p.lr is not None]
    highest = max([rate for _, rate in rates], default=0.0)
    if highest > 0:
        height = bottom - top
        yield path([(x(u), bottom - height * rate / highest) for u, rate in rates], "line2")
        yield text(LEFT + INNER, top - 3, f"highest learning rate {highest:g}", "end")


# lost time


def lost(told: Account) -> str:
    """What slots' time went to, the most first."""
    rows = [(Spent.PRODUCTIVE_TRAINING, told.spent[Spent.PRODUCTIVE_TRAINING]), *told.lost]
    rows = [(kind, seconds) for kind, seconds in rows if seconds > 0]
    whole, longest = sum(told.spent.values()), max([s for _, s in rows], default=1.0)
    parts, left, width, height = [], 150, 560, 25
    for number, (kind, seconds) in enumerate(rows):
        y = number * height
        css = "bar good" if kind is Spent.PRODUCTIVE_TRAINING else "bar"
        length = max(1.5, width * seconds / longest)
        said = f"{words.share(seconds, whole)}  {words.duration(seconds)}"
        parts += [
            text(left - 10, y + 16, kind.value, "end", "label"),
            rectangle(left, y + 4, length, 16, css)[:-2] + f"><title>{kind.meaning}</title></rect>",
            text(left + length + 8, y + 16, said),
        ]
    return picture(len(rows) * height, parts, words.goodput_line(told))


# slots


def slots(told: Account) -> tuple[str, int]:
    """A lane for each slot, and how many more there are than are drawn."""
    story, scale = told.story, scale_of(told.story)
    rows = lanes.lanes(story)
    shown = rows[:MOST_LANES]
    of = lanes.by_worker(story)
    count, drawn = INNER, _drawn(shown, of, scale, story.end, INNER)
    while count > 60 and sum(map(len, drawn)) > MOST_RUNS:
        count //= 2
        drawn = _drawn(shown, of, scale, story.end, count)
    height = 18 if len(shown) <= 16 else 10
    parts = []
    for number, (row, runs) in enumerate(zip(shown, drawn, strict=True)):
        y = number * height
        if height > 12:
            parts.append(text(LEFT - 8, y + 13, row.slots[0].node[:6], "end"))
        by_kind = defaultdict(list)
        for level, first, length in runs:
            x = LEFT + first * INNER / count
            by_kind[level].append(f"M{x:.0f} {y + 2}h{length * INNER / count:.0f}v{height - 4}h")
            by_kind[level][-1] += f"{-length * INNER / count:.0f}z"
        for level, there in sorted(by_kind.items()):
            parts.append(f'<path class="{lanes.KINDS[level]}" d="{"".join(there)}"/>')
        parts += _faults(told, row, scale, y + height / 2)
    parts += time_axis(len(shown) * height + 6, scale.seconds)
    return picture(len(shown) * height + 30, parts, "what each slot did"), len(rows) - len(shown)


def _drawn(
    rows: list[lanes.Lane], of: dict[str, list[Generation]], scale: Scale, end: float, count: int
) -> list[list[tuple[int, int, int]]]:
    per_second = count / scale.seconds if scale.seconds else 0.0
    drawn = []
    for row in rows:
        there = [s for slot in row.slots for s in lanes.spans(slot, of.get(slot.name, []), end)]
        drawn.append(list(lanes.runs(lanes.columns(there, scale.begin, per_second, count))))
    return drawn


def _faults(told: Account, row: lanes.Lane, scale: Scale, y: float) -> Iterable[str]:
    """Where a failure began: on the lanes of its node, while the slot was there."""
    seen = set()
    for stop in told.failures:
        for slot in row.slots:
            gone = told.story.end if slot.gone is None else slot.gone
            if stop.node == slot.node and slot.came <= stop.at <= gone + 60:
                x = round(scale.x(stop.at) / 8) * 8
                if x not in seen:
                    seen.add(x)
                    yield mark("fault", x, y, words.first_line(stop.cause, 90))
