"""Which of a test's parameters are tried each time, and which where there is more time."""

from collections.abc import Iterable

import pytest


def one_of(names: Iterable[str], name: str) -> list:
    """`name` always, the others with `make storms`."""
    others = [pytest.param(other, marks=pytest.mark.storm) for other in names if other != name]
    return [name, *others]
