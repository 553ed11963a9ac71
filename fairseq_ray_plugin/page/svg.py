"""What pictures are made of: axes with round numbers, lines, marks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

WIDTH = 1000
LEFT, RIGHT = 52, 12
INNER = WIDTH - LEFT - RIGHT


def picture(height: float, parts: Iterable[str], what: str) -> str:
    """An SVG element.

    Args:
        what: is to be seen, for who does not see it.
    """
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label={quoteattr(what)}>\n'
        f"{body}\n</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    there = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{there}"/>' if points else ""


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
        f'height="{height:.1f}"/>'
    )


def mark(name: str, x: float, y: float, title: str) -> str:
    """One of the shapes that the page defines, with what it stands for where the mouse is."""
    return f'<use href="#{name}" x="{x:.1f}" y="{y:.1f}"><title>{escape(title)}</title></use>'


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, no more than about that many."""
    if high <= low:
        return [low]
    rough = (high - low) / max(1, most)
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def time_ticks(seconds: float, most: int = 9) -> tuple[list[float], str, float]:
    """Round times from 0, the unit that they are said in, and its seconds."""
    step = next((float(s) for s in _STEPS if seconds / s <= most), 0.0)
    if not step:
        step = 86400.0 * max(1, math.ceil(seconds / 86400 / most))
    names = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
    unit = next(name for name, length in names.items() if step >= length)
    return [n * step for n in range(int(seconds / step) + 1)], unit, names[unit]


def time_axis(y: float, seconds: float) -> list[str]:
    """A horizontal axis of the time since the beginning."""
    there, unit, length = time_ticks(seconds)
    parts = [line(LEFT, y, LEFT + INNER, y)]
    for number, at in enumerate(there):
        x = LEFT + INNER * (at / seconds if seconds else 0)
        words = f"{at / length:g}" + (f" {unit}" if number in (0, len(there) - 1) else "")
        parts += [line(x, y, x, y + 4), text(x, y + 17, words, "middle")]
    return parts
