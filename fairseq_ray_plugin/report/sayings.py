"""What a run says, kept for those who follow it: they may come late, and go."""

from __future__ import annotations

import collections
import dataclasses
import threading
import uuid
from typing import Any

KEPT = 2000
"""So many of the last sayings; each is a line of the loop, or a few of a rank."""

LAST = 20
"""So many are told to who comes late."""


@dataclasses.dataclass(frozen=True)
class Place:
    """How far somebody has heard."""

    teller: str
    num_heard: int


@dataclasses.dataclass(frozen=True)
class Told:
    """What somebody had not heard yet."""

    sayings: list[Any]
    place: Place
    exit_code: int | None = None
    """The run is over, and this was all."""

    status: str = ""
    """How the run is, in a line; nothing: it has not begun, or is over."""


class Sayings:
    """The last things that were said, for any number of listeners, in threads of their own."""

    def __init__(self) -> None:
        self.teller = uuid.uuid4().hex
        """Another one, after a restart, begins anew."""

        self.exit_code: int | None = None
        self.status = ""
        """How the run is, in a line; nobody is woken for that."""

        self._kept: collections.deque[Any] = collections.deque(maxlen=KEPT)
        self._num_said = 0
        self._changed = threading.Condition()

    def put_nowait(self, saying: Any) -> None:
        """Somebody says something; the name is that of a queue's method, for logging's handler."""
        with self._changed:
            self._kept.append(saying)
            self._num_said += 1
            self._changed.notify_all()

    def end(self, exit_code: int) -> None:
        """Nothing more will be said."""
        with self._changed:
            self.exit_code = exit_code
            self._changed.notify_all()

    def tell(self, place: Place | None, limit_s: float) -> Told:
        """What was said after `place`, as soon as there is something, or after `limit_s`.

        Args:
            place: None: who comes late, and hears the last of it.
        """
        with self._changed:
            if place is None:
                heard = max(0, self._num_said - LAST)
            else:
                heard = place.num_heard if place.teller == self.teller else 0
            self._changed.wait_for(
                lambda: self._num_said > heard or self.exit_code is not None, limit_s
            )
            num_new = min(self._num_said - heard, len(self._kept))
            new = list(self._kept)[len(self._kept) - num_new :]
            return Told(new, Place(self.teller, self._num_said), self.exit_code, self.status)
