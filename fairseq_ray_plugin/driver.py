"""The driver's loop: observe the cluster, decide, perform, until the run's end."""

from __future__ import annotations

import logging
import signal
from typing import Any

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.control import failures, loop
from fairseq_ray_plugin.control.state import State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.report import journal

logger = logging.getLogger(__name__)


def drive(
    cluster: Any, config: ElasticConfig, max_ranks: int | None, record: journal.Journal
) -> int:
    """Train on `cluster` (see `distributed.RayCluster`) until the end; returns the exit code."""
    signals = _Signals()
    exit_code: int | None = None
    try:
        state = State()
        while exit_code is None:
            observation = cluster.observe(signals.received)
            state, actions = loop.step(state, observation, config, max_ranks)
            for action in actions:
                match action:
                    case protocol.Log(event):
                        record.write(event)
                        logger.info("%s", _tell(event, cluster))
                    case protocol.End(code, message):
                        (logger.error if code == 1 else logger.info)("%s", message)
                        exit_code = code
                    case _:
                        cluster.perform(action)
    finally:
        cluster.close()
        signals.restore()
    events = record.written()
    logger.info("%s", journal.summary(events))
    raised = [e for e in events if e["kind"] == "stopped" and str(e["cause"]).startswith("FAILED")]
    if raised:
        logger.warning(
            "%s of the restarts were for exceptions of the training code; the last: %s",
            *(len(raised), failures.headline(raised[-1]["cause"])),
        )
    return exit_code


def _tell(event: protocol.JournalEvent, cluster: Any) -> str:
    """The human's line on an event."""
    line = f"generation {event.generation}, update {event.update}: {event.kind}"
    match event.kind:
        case "started" | "advanced":
            line += f" with {event.world_size} workers"
        case "waiting":
            line = f"waiting for {event.cause}; {cluster.describe()}"
    if event.cause and event.kind not in ("waiting", "failed"):
        line += f": {failures.headline(event.cause)}"
    return line


class _Signals:
    """SIGINT and SIGTERM ask the loop to end; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        logger.info("%s: ending after this update", signal.Signals(number).name)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
