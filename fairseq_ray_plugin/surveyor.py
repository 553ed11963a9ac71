"""Asks the cluster's head what there is; it may be slow, or dead, and that stops nobody."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

SURVEY_S = 1.0
"""How often the head is asked."""

Bundles = list[dict[str, float]]
"""What resources are wanted, a mapping a worker."""


Address = tuple[str, int]
"""Host and port."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the cluster's head says of it."""

    free: Mapping[str, Mapping[str, float]]
    """Node that is alive -> resource -> amount."""

    draining: Mapping[str, float]
    """Node that is taken away -> its deadline, seconds since the epoch; 0: not known."""

    daemons: Mapping[str, Address] = dataclasses.field(default_factory=dict)
    """Node that is alive -> where its Ray daemon listens."""

    def slots(self, need: Mapping[str, float]) -> dict[str, int]:
        """Node that stays -> workers that fit there beside what runs there.

        Args:
            need: a worker's, resource -> amount.
        """
        slots = {
            node: int(min(free.get(kind, 0.0) // amount for kind, amount in need.items()))
            for node, free in self.free.items()
            if node not in self.draining
        }
        return {node: number for node, number in slots.items() if number > 0}


class Surveyor:
    """A thread that asks, and asks for what is wanted.

    Args:
        survey: asks the head; both may raise, or never return.
        request: an autoscaler is to have nodes for so much.
        on_survey: called in the thread after each answer.
    """

    def __init__(
        self,
        survey: Callable[[], Survey],
        request: Callable[[Bundles], object],
        on_survey: Callable[[], object] = lambda: None,
    ) -> None:
        self._survey, self._request, self._on_survey = survey, request, on_survey
        self.latest: Survey | None = None
        self.count = 0
        """Answers so far."""

        self._wanted: Bundles = []
        self._requested: Bundles | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def want(self, bundles: Bundles) -> None:
        """So much is wanted from now on."""
        self._wanted = bundles

    def close(self, limit_s: float = 3.0) -> None:
        """Nothing is wanted any more, which the head has heard, if it is there."""
        self.want([])
        self._is_over.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        while True:
            is_over = self._is_over.is_set()
            try:
                if not is_over:  # first: a run waits for it to begin
                    self.latest = self._survey()
                    self.count += 1
                    self._on_survey()
                wanted = self._wanted
                if wanted != self._requested:
                    self._request(wanted)
                    self._requested = wanted
            except Exception as error:
                logger.debug("the cluster's head does not answer: %r", error)
            if is_over:
                return
            self._is_over.wait(SURVEY_S)
