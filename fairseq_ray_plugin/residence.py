"""Where the control loop lives on a cluster: in an actor that outlives the command.

Ray starts the actor again when its process dies, or its node; the loop in it then takes over the
workers, which live on. The command, and whoever else follows the run, asks it what there is to say.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import logging
import logging.handlers
import os
import pickle
import signal
import threading
import time
import traceback

import ray
from ray.experimental import internal_kv

from fairseq_ray_plugin import distributed, driver, head, metrics
from fairseq_ray_plugin.accounting.live import Live
from fairseq_ray_plugin.assignment import Job
from fairseq_ray_plugin.holding import Unusable, hold, whole_name
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.page import words
from fairseq_ray_plugin.report.sayings import Place, Sayings, Told

logger = logging.getLogger(__name__)

LAST_LINES_S = 0.5
"""How long the ranks' last lines may be on their way, which Ray reads from files."""

LINGER_S = 60.0
"""For how long it is said how the run ended, where nobody has heard it."""

PLAN_LIMIT_S, PLAN_LOOK_S = 120.0, 0.03
"""How long the command may take to say what to train, and how often is looked whether it has."""

FAREWELL_S = 1.0
"""How long others who follow the run have to hear it, too."""

_KEYS = head.NAMESPACE.encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a control loop begins with."""

    job: Job
    config: ElasticConfig
    max_ranks: int | None
    save_dir: str
    """Its absolute path."""

    options: str
    """A digest of all options of the command."""


def name_for(save_dir: str) -> str:
    """The name of the actor of the run that has this save dir."""
    path = whole_name(save_dir)
    return "loop-" + hashlib.sha256(path.encode()).hexdigest()[:16]


def keep(plan: Plan) -> None:
    """A plan is where the actor finds it whenever it starts.

    Ray would keep a large argument of the actor's in the memory of the command, which may be gone.
    """
    key = _plan_of(plan.job.name)
    internal_kv._internal_kv_put(key, pickle.dumps(plan), namespace=_KEYS)


def forget(run: str) -> None:
    """A run is over."""
    for key in (_plan_of(run), _signals_of(run)):
        internal_kv._internal_kv_del(key, namespace=_KEYS)


def _plan_of(run: str) -> bytes:
    return f"plan-{run}".encode()


def _signals_of(run: str) -> bytes:
    """The key of the signals that a run has been told: who told it may be gone, and so may we."""
    return f"plan-{run}-signals".encode()


def _await_plan(run: str) -> Plan:
    end = time.monotonic() + PLAN_LIMIT_S
    while (packed := internal_kv._internal_kv_get(_plan_of(run), namespace=_KEYS)) is None:
        if time.monotonic() > end:
            raise Unusable("the command has gone before it had said what to train")
        time.sleep(PLAN_LOOK_S)
    plan: Plan = pickle.loads(packed)
    return plan


class Residence:
    """The actor: a control loop in one thread, and who follows it in others.

    Args:
        run: its name; the plan may be there later.
    """

    def __init__(self, run: str) -> None:
        # as for a worker: sent to all processes of a step, it is the followers' to deal with
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(signal.SIG_IGN))
        with contextlib.suppress(OSError):  # Ray runs workers at nice 15; the command was at 0
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        self.run = run
        self.plan: Plan
        self.has_plan = threading.Event()
        self.sayings = Sayings()
        signals = internal_kv._internal_kv_get(_signals_of(run), namespace=_KEYS)
        self.asked = Asked(list(signals or b""))
        self.is_told = threading.Event()
        ours = logging.getLogger("fairseq_ray_plugin")
        ours.setLevel(logging.INFO)
        ours.addHandler(logging.handlers.QueueHandler(self.sayings))  # type: ignore[arg-type]
        ours.propagate = False
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._live, daemon=True).start()

    def options(self) -> str:
        """A digest of the options of the command that started the run."""
        self.has_plan.wait()
        return self.plan.options

    def is_over(self) -> bool:
        """Whether there is nothing left but to say how the run ended."""
        return self.sayings.exit_code is not None

    def follow(self, place: Place | None, signals: list[int], limit_s: float) -> Told:
        """What has been said after `place`, as soon as there is something.

        Args:
            signals: all that the one who asks has received.
        """
        if self.asked.hear(signals):
            internal_kv._internal_kv_put(_signals_of(self.run), bytes(signals), namespace=_KEYS)
        told = self.sayings.tell(place, limit_s)
        if told.exit_code is not None:
            self.is_told.set()
        return told

    def _listen(self) -> None:
        """What the ranks print, as Ray tells a driver."""
        context = ray.get_runtime_context()
        job, worker = context.get_job_id(), ray._private.worker.global_worker
        while True:
            subscriber = ray._raylet.GcsLogSubscriber(
                worker_id=worker.worker_id, address=worker.gcs_client.address
            )
            try:
                subscriber.subscribe()
                while (batch := subscriber.poll()) is not None:
                    if batch["job"] in (job, "", None):
                        self.sayings.put_nowait(batch)
            except Exception as error:  # Ray's head is away
                logger.debug("what ranks print is not heard: %r", error)
            finally:
                subscriber.close()
            time.sleep(1)

    def _live(self) -> None:
        exit_code = 1
        try:
            self.plan = _await_plan(self.run)
            self.has_plan.set()
            exit_code = self._train()
        except Unusable as error:
            exit_code = 2
            logger.error("%s", error)
            head.end_workers(self.run)  # which were placed ahead
        except KeyboardInterrupt:
            exit_code = 128 + max(self.asked.signals, default=signal.SIGINT)
        except BaseException:
            logger.error("the control loop could not go on:\n%s", traceback.format_exc())
        time.sleep(LAST_LINES_S)
        self.sayings.end(exit_code)
        self.is_told.wait(LINGER_S)
        time.sleep(FAREWELL_S)
        threading.Timer(5, os._exit, (0,)).start()  # where Ray's head is gone
        forget(self.run)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _train(self) -> int:
        plan = self.plan
        os.environ.update(plan.job.environment)
        if os.path.isdir(plan.job.working_dir):
            os.chdir(plan.job.working_dir)
        is_first = not ray.get_runtime_context().was_current_actor_reconstructed
        with hold(plan.job, plan.save_dir, run=plan.job.name, is_needed=is_first) as held:
            cluster = distributed.RayCluster(held.job, plan.config, plan.max_ranks)
            if is_first and not cluster.nodes_outlast_head_s:
                logger.info(
                    "Ray's head is a single point of failure, for it keeps nothing on disk: should "
                    "it die, the state is saved, and the run ends"
                )
            try:
                return driver.drive(
                    cluster,
                    plan.config,
                    plan.max_ranks,
                    held.journal,
                    held.claim,
                    self.asked,
                    watchers=[self._say_how_it_is, metrics.Metrics(held.journal.save_dir)],
                )
            finally:
                self.sayings.status = ""

    def _say_how_it_is(self, live: Live) -> None:
        self.sayings.status = words.status(live, time.time())


class Asked:
    """The signals that followers have received: the first asks for the end, two end at once."""

    def __init__(self, signals: list[int]) -> None:
        self.signals = signals

    def hear(self, signals: list[int]) -> bool:
        """Whether there is a new one among all that a follower has received so far."""
        is_new = len(signals) > len(self.signals)
        if is_new:
            self.signals = signals
        return is_new

    @property
    def received(self) -> int | None:
        """The signal that asks for the end.

        Raises:
            KeyboardInterrupt: it is not to be waited for.
        """
        if len(self.signals) > 1:
            raise KeyboardInterrupt
        return self.signals[0] if self.signals else None

    def restore(self) -> None:
        """Nothing was changed."""
