"""The command's side of a control loop that lives on the cluster: start it, find it, follow it."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
from concurrent.futures import Future
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fairseq_ray_plugin import head, residence
from fairseq_ray_plugin.report import status_line
from fairseq_ray_plugin.report.sayings import Place, Told

logger = logging.getLogger(__name__)

LISTEN_S = 5.0
"""The loop is asked again after so long, if it had nothing to say."""

STATUS_S = 1.0
"""And after so long, where a terminal shows how the run is."""

ASK_AGAIN_S = 0.2
"""A loop that cannot be reached is asked again after so long: Ray may be starting it again."""

ANSWER_LIMIT_S = 30.0
"""A loop that does not say who it is for so long is no use."""

FAREWELL_LIMIT_S = 10.0
"""How long the actor of a run that is over may take to go."""

MOST_FOLLOWERS = 32


def run(plan: residence.Plan, loop: Any = None) -> int:
    """Train as planned, in a new loop, or follow the one that does; returns the exit code.

    Args:
        loop: that of this run, which waits for the plan; None: there is none yet.

    Raises:
        ValueError: a run with other options has this save dir.
        ConnectionError: the loop that has it does not answer.
    """
    there = None
    try:
        if loop is None and (there := _living(plan)) is None:
            loop = start(plan.save_dir, plan.job.name)
        if there is None:
            residence.keep(plan)
    except BaseException:
        head.end_workers(plan.job.name)  # whoever was placed ahead: no loop will
        raise
    if there is None:
        return follow(loop, Place("", 0))
    head.end_workers(plan.job.name)
    logger.info("the run for %s lives: following it", plan.save_dir)
    return follow(there, None)


def _living(plan: residence.Plan) -> Any:
    """The loop that has this save dir, and trains as planned; None: there is none."""
    end = time.monotonic() + FAREWELL_LIMIT_S
    while (there := find(plan.save_dir)) is not None:
        try:
            options, is_over = _ask(there)
        except RayActorError:  # it has just gone
            options, is_over = "", True
        if not is_over and options == plan.options:
            return there
        if not is_over or time.monotonic() > end:
            raise ValueError(
                f"--save-dir {plan.save_dir}: a run with other options has it; to follow it: "
                f"fairseq-ray-train --ray-attach {plan.save_dir}, and Ctrl-C there ends it"
            )
        ray.kill(there, no_restart=True)
        time.sleep(ASK_AGAIN_S)  # until its name is free
    return None


def attach(save_dir: str) -> int:
    """Follow the run that has this save dir; returns its exit code.

    Raises:
        ValueError: there is none.
    """
    there = find(save_dir)
    if there is None:
        raise ValueError(f"--ray-attach {save_dir}: no run that has this save dir lives there")
    return follow(there, None)


def find(save_dir: str) -> Any:
    """The loop of the run that has this save dir; None: there is none."""
    try:
        return ray.get_actor(residence.name_for(save_dir))
    except ValueError:
        return None


def _ask(there: Any) -> tuple[str, bool]:
    end = time.monotonic() + ANSWER_LIMIT_S
    while True:
        try:
            left = max(0.0, end - time.monotonic())
            options, is_over = ray.get(
                [there.options.remote(), there.is_over.remote()], timeout=left
            )
            return options, is_over
        except (ActorUnavailableError, GetTimeoutError) as error:
            if time.monotonic() > end:
                raise ConnectionError("the run's control loop does not answer") from error
            time.sleep(ASK_AGAIN_S)


def start(save_dir: str, run: str) -> Any:
    """A loop that waits for the plan of that run.

    Raises:
        ValueError: another one has that save dir.
    """
    try:
        return (
            ray.remote(residence.Residence)
            .options(
                name=residence.name_for(save_dir),
                lifetime="detached",
                num_cpus=0,
                memory=1,  # Ray puts an actor that takes nothing anywhere, whatever is preferred
                max_restarts=-1,
                max_concurrency=MOST_FOLLOWERS,
                # the save dir may be this node's alone
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    ray.get_runtime_context().get_node_id(), soft=True
                ),
            )
            .remote(run)
        )
    except ValueError as error:  # another command was faster
        raise ValueError(f"--save-dir {save_dir}: another run has just started there") from error


def follow(there: Any, place: Place | None) -> int:
    """Print what a run says until it is over; returns its exit code.

    SIGINT and SIGTERM are passed on: the first asks the run to end, a second ends it at once.

    Args:
        place: from where on; None: the last of it, and what comes.
    """
    follower = _Follower(there, place)
    handlers = {number: signal.signal(number, follower.receive) for number in _SIGNALS}
    try:
        return follower.follow()
    finally:
        if follower.line is not None:
            follower.line.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Follower:
    def __init__(self, there: Any, place: Place | None) -> None:
        self.there, self.place = there, place
        self.signals: list[int] = []
        self.is_unreached = False
        self.line = status_line.on_this_terminal()
        self.listen_s = LISTEN_S if self.line is None else STATUS_S
        # answers, which threads of Ray's put, and signals
        self.events: queue.SimpleQueue[Future[Told] | int] = queue.SimpleQueue()

    def receive(self, number: int, frame: Any) -> None:
        self.events.put(number)  # which may be done anywhere

    def follow(self) -> int:
        self._ask(self.listen_s)
        while True:
            match self.events.get():
                case int(number):
                    self.signals.append(number)
                    if len(self.signals) == 1:
                        logger.info("%s: ending after this update", signal.Signals(number).name)
                    self.there.follow.remote(self.place, self.signals, 0)
                case answer:
                    exit_code = self._hear(answer)
                    if exit_code is not None:
                        return exit_code

    def _ask(self, limit_s: float) -> None:
        future = self.there.follow.remote(self.place, self.signals, limit_s).future()
        future.add_done_callback(self.events.put)

    def _hear(self, answer: Future[Told]) -> int | None:
        try:
            told = answer.result()
        except ActorUnavailableError:
            if not self.is_unreached:
                self.is_unreached = True
                logger.warning("the control loop cannot be reached; training goes on without it")
            time.sleep(ASK_AGAIN_S)
            self._ask(self.listen_s)
            return None
        except RayActorError as error:
            if self.signals:
                return 128 + self.signals[0]
            logger.error("the control loop is gone: the same command goes on; %s", error)
            return 1
        self.is_unreached = False
        self.place = told.place
        for saying in told.sayings:
            _print(saying)
        if self.line is not None and told.status:
            self.line.show(told.status)
        if told.exit_code is None:
            self._ask(self.listen_s)
        return told.exit_code


def _print(saying: Any) -> None:
    """As a driver prints it: a line of the loop, or what Ray read of a rank."""
    if isinstance(saying, logging.LogRecord):
        there = logging.getLogger(saying.name)
        if there.isEnabledFor(saying.levelno):
            there.handle(saying)
        return
    saying["localhost"] = ray.util.get_node_ip_address()
    ignore_prefix = os.environ.get("RAY_DISABLE_WORKER_LOG_PREFIX", "").lower() in ("1", "true")
    ray_worker.print_to_stdstream(saying, ignore_prefix=ignore_prefix)
    sys.stdout.flush()
