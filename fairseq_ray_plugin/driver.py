"""The driver's loop: observe the cluster, decide, perform, until the run's end.

Nothing that is only bookkeeping ends it: what is written is written by threads of its own, and
whatever an action raises is told once. An exception of the decisions themselves ends the run, with
what is held saved first.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import logging
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.checkpoints.claim import Claim
from fairseq_ray_plugin.control import loop, takeover
from fairseq_ray_plugin.control.chronicle import Chronicle
from fairseq_ray_plugin.control.recording import Beginning, Moment
from fairseq_ray_plugin.control.state import Action, End, Gathering, Log, Standing, State
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.page import words
from fairseq_ray_plugin.report import journal
from fairseq_ray_plugin.report.background import Background
from fairseq_ray_plugin.watching import Watch, Watcher

logger = logging.getLogger(__name__)

RECORD = "FAIRSEQ_RAY_RECORD"
"""Environment variable: the file that all observations go to, for `replay`."""

LAST_MOMENTS = 100
"""So many observations, at least, are kept for the report on a defect."""

MAX_UNSTARTED = 5
"""Generations in a row that could not be started, whatever was raised: then it is a defect."""

TALK_S, MOST_SILENT_S = 5.0, 300.0
"""What a run waits for is said again after so long, at first and at last."""

MAX_DEFECTS = 20
"""Exceptions of the decisions after which even saving what is held is given up, and looks at the
cluster in a row that may fail.
"""


def drive(
    cluster: Any,
    config: ElasticConfig,
    max_ranks: int | None,
    record: journal.Journal,
    claim: Claim | None = None,
    signals: Any = None,
    watchers: Sequence[Watcher] = (),
) -> int:
    """Train on `cluster` (see `distributed.RayCluster`) until the end; returns the exit code.

    Workers of this run that another loop has left are taken over.

    Args:
        claim: on the save dir; the run ends without writing there when it is lost.
        signals: says which have been received (as `_Signals`); None: those of this process.
        watchers: are shown the run once a second.
    """
    signals = signals or _Signals()
    driver = None
    try:
        driver = _begin(cluster, config, max_ranks, record, claim, watchers)
        gc.freeze()  # or a stop with thousands of orders looks through all that was imported
        while driver.end is None:
            driver.turn(signals.received)
    finally:
        cluster.close()
        signals.restore()
        if driver is not None:
            driver.close()
    return driver.end.exit_code


def _begin(
    cluster: Any,
    config: ElasticConfig,
    max_ranks: int | None,
    record: journal.Journal,
    claim: Claim | None,
    watchers: Sequence[Watcher],
) -> Driver:
    found, lines = cluster.adopt(), record.of_run()
    if not found and not lines:
        return Driver(cluster, config, max_ranks, record, claim, watchers=watchers)
    state, actions = takeover.take_over(found, lines, cluster.now)
    driver = Driver(cluster, config, max_ranks, record, claim, state, watchers)
    for line in lines:
        driver.remember(line)
    driver.account_for_workers()
    driver.perform(actions, protocol.Observation(now=cluster.now))
    return driver


class Patience:
    """When it is time to say again what is waited for: soon, and then more and more seldom."""

    def __init__(self) -> None:
        self._spoke_at, self._pause_s = 0.0, TALK_S

    def spoke(self, now: float) -> None:
        """Something else was said."""
        self._spoke_at, self._pause_s = now, TALK_S

    def is_over(self, now: float) -> bool:
        if now - self._spoke_at < self._pause_s:
            return False
        self._spoke_at, self._pause_s = now, min(2 * self._pause_s, MOST_SILENT_S)
        return True


class Driver:
    """One run: what has been decided so far, and where that is written down."""

    def __init__(
        self,
        cluster: Any,
        config: ElasticConfig,
        max_ranks: int | None,
        record: journal.Journal,
        claim: Claim | None = None,
        state: State | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.cluster, self.config, self.max_ranks, self.claim = cluster, config, max_ranks, claim
        self.end: End | None = None
        self.state = state or State()
        self.lines: list[dict[str, Any]] = []
        self.watch = Watch(watchers)
        self.journal = Background(record.write, record.path)
        self.chronicle, self.save_dir = Chronicle(self.state), record.save_dir
        self.report_path = os.path.join(os.path.dirname(record.path), "elastic_defect.pickle")
        # a state is large: one in a hundred is kept, and what was observed since
        self.moments: collections.deque[tuple[State, list[protocol.Observation]]]
        self.moments = collections.deque([(self.state, [])], maxlen=2)
        self.num_defects = self.num_blind = self.num_unstarted = 0
        self.patience = Patience()
        self.complaints: set[str] = set()
        self.unreached: list[protocol.Unreached] = []
        self.recordings: list[Background[Beginning | Moment]] = []
        if path := os.environ.get(RECORD):
            self._record(path, self.state)

    def account_for_workers(self) -> None:
        """Those that another loop has left are there."""
        self._write_down(self.chronicle.first)

    def _record(self, path: str, state: State) -> Background[Beginning | Moment]:
        """What is recorded from now on goes to that file, too."""
        recording = Background(_pickles(path), path)
        recording.put(Beginning(self.config, self.max_ranks, state))
        self.recordings.append(recording)
        return recording

    def turn(self, received: int | None) -> None:
        """One observation, and what follows from it.

        Args:
            received: the signal that asks for the end, if there was one.
        """
        try:
            observation = self.cluster.observe(received, self.unreached)
        except Exception as error:
            self._complain("the cluster could not be observed", error)
            self.num_blind += 1
            if self.num_blind > MAX_DEFECTS:
                self.end = End(loop.DEFECT, f"the cluster cannot be observed: {error!r}")
            return
        if self.claim is not None and self.claim.lost is not None:
            observation = dataclasses.replace(observation, save_dir_lost=self.claim.lost)
        self.num_blind = 0
        self.unreached = []
        before = self.state
        if len(self.moments[-1][1]) >= LAST_MOMENTS:
            self.moments.append((before, []))
        self.moments[-1][1].append(observation)
        actions: list[Action] = []
        error_text = ""
        try:
            self.state, actions = loop.step(before, observation, self.config, self.max_ranks)
        except Exception as error:
            error_text = "".join(traceback.format_exception(error))
            self._defect(observation, error, error_text)
        self._write_down(lambda: self.chronicle.before(observation, before, self.state, actions))
        for recording in self.recordings:
            recording.put(Moment(observation, actions, error_text))
        self.perform(actions, observation)
        self._show(observation.now)
        if not isinstance(self.state.phase, Gathering) or any(isinstance(a, Log) for a in actions):
            self.patience.spoke(observation.now)
        elif self.patience.is_over(observation.now):
            self._tell_of_waiting()

    def _tell_of_waiting(self) -> None:
        standings = [worker.standing for worker in self.state.workers.values()]
        why = ", which import torch and fairseq" if Standing.STARTING in standings else ""
        try:
            there = self.cluster.describe()
            logger.info("still waiting for %s%s; %s", self.state.waiting or "workers", why, there)
        except Exception as error:
            self._complain("what is waited for cannot be told", error)

    def perform(self, actions: list[Action], seen: protocol.Observation) -> None:
        """Do what was decided; what cannot be done is told to the next decision."""
        for action in actions:
            try:
                self._perform(action)
                if isinstance(action, protocol.Start):
                    self.num_unstarted = 0
            except Exception as error:
                self._complain(f"{type(action).__name__} could not be done", error)
                if isinstance(action, protocol.Tell):
                    order: Any = action.order
                    self.unreached.append(protocol.Unreached(action.worker, order, repr(error)))
                elif isinstance(action, protocol.StandBy | protocol.Start):
                    worker = action.ranks[0]
                    self.unreached.append(protocol.Unreached(worker, action, repr(error)))
                    self.num_unstarted += isinstance(action, protocol.Start)
                    if self.num_unstarted > MAX_UNSTARTED:
                        self._defect(seen, error, traceback.format_exc())

    def _perform(self, action: Action) -> None:
        match action:
            case Log(event):
                self._write(event)
                is_loss = event.kind is journal.EventKind.OUT_OF_MEMORY
                level = logging.WARNING if is_loss else logging.INFO
                logger.log(level, "%s", _tell(event, self.cluster))
            case End():
                self.end = action
            case _:
                if isinstance(action, protocol.Start):
                    start = action
                    self._write_down(lambda: self.chronicle.at(start, self.state))
                self.cluster.perform(action)

    def _write(self, event: journal.Event) -> None:
        line = journal.line(event)
        self.remember(line)
        self.journal.put(line)

    def remember(self, line: dict[str, Any]) -> None:
        """Something has happened to this run, and is written down."""
        self.lines.append(line)
        try:
            self.watch.hear(line)
        except Exception as error:
            self._complain("the account of the run is not complete", error)

    def _show(self, now: float) -> None:
        try:
            self.watch.look(lambda: self.chronicle.pulse.beat(self.state, now), now)
        except Exception as error:
            self._complain("the run cannot be shown to those who watch it", error)

    def _write_down(self, events: Callable[[], list[journal.Event]]) -> None:
        """What only the account of the run needs."""
        try:
            for event in events():
                self._write(event)
                if event.kind not in journal.QUIET:
                    logger.info("%s", _tell(event, self.cluster))
        except Exception as error:
            self._complain("the account of the run is not complete", error)

    def _complain(self, what: str, error: Exception) -> None:
        """Said once, with all there is to know; training goes on."""
        if what not in self.complaints:
            self.complaints.add(what)
            logger.error("%s; training goes on", what, exc_info=error)

    def _defect(self, observation: protocol.Observation, error: Exception, text: str) -> None:
        """The loop itself is wrong: what is held is saved, and the run ends."""
        self.num_defects += 1
        if self.num_defects == 1:
            logger.error(
                "this is a defect of fairseq_ray_plugin; please report it, with %s\n%s",
                *(self.report_path, text),
            )
            begin, _ = self.moments[0]
            report = self._record(self.report_path, begin)
            for seen in [o for _, observations in self.moments for o in observations][:-1]:
                report.put(Moment(seen))
        self.state = loop.rescue(self.state, observation.now, repr(error))
        if self.num_defects > MAX_DEFECTS:
            self.end = End(loop.DEFECT, f"a defect of fairseq_ray_plugin: {error!r}")

    def _tell_account(self) -> None:
        """Where the time went, in a line, and where there is more."""
        if not self.lines:
            return  # it was ended before anything had happened
        try:
            run = [{**line, "run": ""} for line in self.lines]
            logger.info(
                "%s; more: python -m fairseq_ray_plugin report %s",
                *(words.goodput_line(account(run)), self.save_dir),
            )
        except Exception as error:
            self._complain("the account of the run is not complete", error)

    def close(self) -> None:
        """All is written that can be, and told what the run went through, and why it ended."""
        logger.info("%s", journal.summary(self.lines))
        self._tell_account()
        stops = [line for line in self.lines if line["kind"] == "stopped"]
        raised = [line for line in stops if line["cause"].startswith("FAILED")]
        if raised:
            logger.warning(
                "%s of the restarts were for exceptions of the training code; the last: %s",
                *(len(raised), raised[-1]["cause"]),
            )
        if self.end is not None:
            failed = 0 < self.end.exit_code < 128
            (logger.error if failed else logger.info)("%s", self.end.message)
        self.journal.close()
        for recording in self.recordings:
            recording.close()


def _pickles(path: str) -> Callable[[Beginning | Moment], None]:
    """What writes entries of a recording to a file, which is opened with the first."""
    file: BinaryIO | None = None

    def write(entry: Beginning | Moment) -> None:
        nonlocal file
        file = file or open(path, "wb")
        pickle.dump(entry, file)
        file.flush()

    return write


def _tell(event: journal.Event, cluster: Any) -> str:
    """The human's line on an event."""
    kind = event.kind
    if kind is journal.EventKind.WAITING:
        return f"waiting for {event.cause}; {cluster.describe()}"
    line = f"generation {event.generation}, update {event.update}: {kind.value}"
    if kind in (journal.EventKind.STARTED, journal.EventKind.ADVANCED):
        line += f" with {event.world_size} workers"
    if event.cause and kind is not journal.EventKind.FAILED:
        line += f": {event.cause.partition(chr(10))[0]}"
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
