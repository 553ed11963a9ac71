"""The cluster as Ray shows it: workers on slots, what they report, and calls that never block.

`launch` connects to Ray, and `residence` is where the control loop that uses this lives.
"""

from __future__ import annotations

import ctypes
import functools
import queue
import signal
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from fairseq_ray_plugin import head, placing, protocol, starting
from fairseq_ray_plugin.assignment import Found, Job, Site
from fairseq_ray_plugin.doubts import Doubts
from fairseq_ray_plugin.heartbeats import Heartbeats
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Gone, Heard, Order, StandBy, Start, Unfit, Unreached
from fairseq_ray_plugin.surveyor import Survey, Surveyor
from fairseq_ray_plugin.worker.forsaken import Forsaken
from fairseq_ray_plugin.worker.worker import Worker

TICK_S = 0.2
"""How long the control loop waits for something to happen before it looks at the clock."""

MOST_ANSWERS = 1000
"""So many make one observation, for which the loop takes no longer than 20 ms."""

PAUSE_S = 2.0
"""Of a longer time between two looks the rest was the driver's own: nobody is to blame for it."""

LISTEN_S = 20.0
"""A worker with nothing to say is asked again after so long."""

ASK_AGAIN_S = 1.0
"""A worker that cannot be reached is asked again after so long."""

NO_DEADLINE_S = 600.0
"""When a node is taken to be gone that is drained without saying by when."""

HEAD_SILENT_S = 5.0
"""The end of a run does not wait for a head that has not answered for so long."""


Asked = Order | Start | StandBy | str
"""What a worker was asked, for its answer to be understood."""


class RayDistributedActor(Worker):
    """A worker, as a Ray actor: holds one slot, and a training process in it.

    Args:
        save_after_s: if nobody has asked it anything for so long, what its rank holds is saved.
        unasked_limit_s: and after so long it ends.
    """

    def __init__(self, site: Site, save_after_s: float, unasked_limit_s: float) -> None:
        # sent to all processes of a Slurm step, it is the driver's to deal with, which saves what
        # is held here; Ray itself ends its workers otherwise. Not by the module signal: this is
        # not the main thread
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(signal.SIG_IGN))
        super().__init__(site)
        self.forsaken = Forsaken(self, save_after_s, unasked_limit_s)

    async def next_messages(self, num_heard: int, limit_s: float) -> list[protocol.WorkerMessage]:
        self.forsaken.is_asked()
        return await super().next_messages(num_heard, limit_s)

    def get_node_ip(self) -> str:
        return str(ray.util.get_node_ip_address())

    def get_node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def get_gpu(self) -> str:
        return ",".join(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


class RayCluster:
    """Workers on a Ray cluster; carries out the control loop's actions and says what happens.

    Args:
        unasked_limit_s: workers that nobody has asked anything for so long end themselves.
    """

    def __init__(
        self,
        job: Job,
        config: ElasticConfig,
        max_ranks: int | None,
        unasked_limit_s: float = placing.UNASKED_LIMIT_S,
    ) -> None:
        self.unasked_limit_s = unasked_limit_s
        self.job, self.run = ray.put(job), job.name
        self.config, self.need = config, placing.need_of(config)
        self.answers: queue.SimpleQueue[tuple[str, Order | Start | str, Future[Any]]] = (
            queue.SimpleQueue()
        )
        """Worker, what it was asked, and what came of it; filled by threads."""

        # an answer of no worker's: what there is now is looked at at once
        look = functools.partial(self.answers.put, ("", "survey", Future()))
        self.surveyor = Surveyor(head.survey, head.request, look)
        # an autoscaler adds nodes for what is asked for and not there, not for what would be of
        # use; the request is the cluster's, so it also takes the place of one a killed driver left
        self.num_asked = max_ranks or 0
        self.surveyor.want([self.need] * self.num_asked)
        self.survey: Survey | None = None
        self.met: tuple[int, Any] = (0, None)
        """A generation, and where its ranks meet: they may be told to stand by first."""

        self.surveys_seen, self.head_silent_s = 0, 0.0
        self.nodes_outlast_head_s = head.nodes_outlast_head()
        self.makers = ThreadPoolExecutor(8)  # which place workers
        self.actors: dict[str, Any] = {}
        self.nodes: dict[str, str] = {}
        self.messages_heard: dict[str, int] = {}
        self.heartbeats = Heartbeats(lambda worker: self._call(worker, "beat", "beat"))
        self.not_ready: set[str] = set()
        self.doubts = Doubts(lambda node: self.answers.put((node, "node", Future())))

        self.later: list[tuple[float, str, str]] = []
        """When to ask which worker again, and what."""

        self.now = self.looked = time.monotonic()

    def observe(
        self, signal: int | None = None, unreached: Collection[Unreached] = ()
    ) -> protocol.Observation:
        """What there is now; returns as soon as something has happened, or after a tick."""
        answers = []
        try:
            answers.append(self.answers.get(timeout=0 if unreached else TICK_S))
            while len(answers) < MOST_ANSWERS:
                answers.append(self.answers.get_nowait())
        except queue.Empty:
            pass
        self._look_at_the_clock()
        events: list[protocol.Event] = list(unreached)
        for worker, asked, answer in answers:
            if asked == "place":
                events += self._placed(worker, answer)
            elif asked == "node":
                events += self._node_died(node=worker)
            elif worker in self.actors:
                events += self._outcome(worker, asked, answer)
        due, self.later = self.later, []
        for at, worker, asked in due:
            if at > self.now:
                self.later.append((at, worker, asked))
            else:
                self._ask_again(worker, asked)
        room: dict[str, int] = {}
        draining: dict[str, float] = {}
        survey = self.surveyor.latest
        if survey is not None and survey is not self.survey:
            self.survey = survey
            there = set(self.nodes.values())
            draining = {
                node: self.now + (at - time.time() if at else NO_DEADLINE_S)
                for node, at in survey.draining.items()
                if node in there
            }
            # a worker just placed may not have taken its resources yet
            unsettled = {self.nodes[worker] for worker in self.not_ready}
            slots = survey.slots(self.need)
            room = {node: slots[node] for node in slots.keys() - unsettled}
        return protocol.Observation(
            now=self.now,
            room=room,
            draining=draining,
            heard=dict(self.heartbeats.heard),
            events=tuple(events),
            signal=signal,
            head_silent_s=self.head_silent_s,
            nodes_outlast_head_s=self.nodes_outlast_head_s,
        )

    def _look_at_the_clock(self) -> None:
        looked = time.monotonic()
        passed = min(looked - self.looked, PAUSE_S)
        self.looked = looked
        self.now += passed
        is_heard = self.surveyor.count != self.surveys_seen
        self.surveys_seen = self.surveyor.count
        self.head_silent_s = 0.0 if is_heard else self.head_silent_s + passed

    def _outcome(self, worker: str, asked: Asked, answer: Future[Any]) -> list[protocol.Event]:
        error = answer.exception()
        match asked:
            case "next_messages" | "beat" | "prepare" if error is not None:
                # it may be there all the same: who is not heard of is judged by that
                if isinstance(error, ActorUnavailableError):
                    self.later.append((self.now + ASK_AGAIN_S, worker, asked))
                    return []
                self._drop(worker)
                text = str(error)
                with_node = any(sign in text for sign in head.NODE_DIED)
                return [Gone(worker, f"worker lost: {head.reason_of(text)}", with_node)]
            case "next_messages":
                messages = answer.result()
                self.messages_heard[worker] += len(messages)
                if not any(isinstance(message, Unfit) for message in messages):
                    self._ask_again(worker, asked)
                return [self._hear(worker, message) for message in messages]
            case "beat":
                self.heartbeats.answered(worker, self.nodes[worker], self.now)
                return []
            case StandBy() | Start() | protocol.Hold() | protocol.Save() | protocol.Publish():
                return [Unreached(worker, asked, head.reason_of(str(error)))] if error else []
        return []

    def _doubt(self, node: str) -> None:
        """Something failed, and what runs there may be what did."""
        if self.survey is not None and node in self.survey.daemons:
            self.doubts.begin(node, self.survey.daemons[node])

    def _node_died(self, node: str) -> list[protocol.Event]:
        lost = [worker for worker, there in self.nodes.items() if there == node]
        for worker in lost:
            self._drop(worker)
        reason = "worker lost: nobody listens any more where its node's Ray daemon did"
        return [Gone(worker, reason, with_node=True) for worker in lost]

    def _hear(self, worker: str, message: protocol.WorkerMessage) -> protocol.Event:
        match message:
            case protocol.Ready():
                self.not_ready.discard(worker)
            case Unfit():
                self._drop(worker)
            case protocol.FromRank(_, protocol.Held()):
                self.doubts.end(self.nodes[worker])
        return Heard(worker, message)

    def describe(self) -> str:
        """What of the cluster counts for a worker, for people."""
        nodes = self.survey.free.values() if self.survey else ()
        kinds = ("CPU",) if self.config.cpu else ("GPU", "CPU")
        free = [f"{sum(node.get(kind, 0) for node in nodes):.0f} {kind}s free" for kind in kinds]
        return f"Ray shows {len(nodes)} nodes, {', '.join(free)}"

    def perform(self, action: protocol.ClusterAction) -> None:
        """Carry out an action on workers; never waits for one."""
        match action:
            case protocol.Place(worker, node):
                self._place(worker, node)
            case protocol.Remove(worker):
                self._drop(worker)
            case StandBy():
                self._start(action, "stand_by")
            case Start():
                self._start(action, "start")
            case protocol.Tell(worker, order):
                self._call(worker, order, "tell", order)
                if isinstance(order, protocol.Hold) and order.at_once:
                    self._doubt(self.nodes.get(worker, ""))

    def _place(self, worker: str, node: str) -> None:
        self.nodes[worker] = node
        self.not_ready.add(worker)
        # Ray's head is asked whether the name is free, and may take its time
        future = self.makers.submit(self._make, worker, node)
        future.add_done_callback(functools.partial(self._answered, worker, "place"))

    def _make(self, worker: str, node: str) -> Any:
        limit_s = self.unasked_limit_s
        save_after_s = placing.save_after_s(self.nodes_outlast_head_s, limit_s)
        name = head.name_for(self.run, worker)
        arguments = (self.job, save_after_s, limit_s)
        return placing.make(RayDistributedActor, name, node, self.config, *arguments)

    def _placed(self, worker: str, answer: Future[Any]) -> list[protocol.Event]:
        error = answer.exception()
        if error is None and worker in self.nodes:
            self.actors[worker] = answer.result()
            self._begin(worker, self.nodes[worker], 0, is_ready=False)
        elif error is None:
            ray.kill(answer.result())  # it was not wanted any more
        elif worker in self.nodes:
            self._drop(worker)
            return [Gone(worker, f"it could not be placed: {head.reason_of(str(error))}")]
        return []

    def _begin(self, worker: str, node: str, num_heard: int, is_ready: bool) -> None:
        """From now on a worker is heard."""
        self.nodes[worker] = node
        self.messages_heard[worker] = num_heard
        if not is_ready:
            self.not_ready.add(worker)
            self._ask_again(worker, "prepare")
        self._ask_again(worker, "next_messages")
        self.heartbeats.begin(worker, node, self.now)

    def adopt(self) -> dict[str, Found]:
        """The workers that another loop of this run has left: what each says of itself."""
        left = head.find_workers(self.run)
        for worker, (actor, there) in left.items():
            self.actors[worker] = actor
            self._begin(worker, there.node, there.num_heard, there.is_ready)
        self.num_asked = max(self.num_asked, len(left))
        self.surveyor.want([self.need] * self.num_asked)
        return {worker: there for worker, (_, there) in left.items()}

    def _start(self, start: Start | StandBy, method: str) -> None:
        if self.met[0] != start.generation:
            # Ray hands the first worker's answer to the others: the driver need not wait for it
            on_one_node = len({self.nodes[worker] for worker in start.ranks}) == 1
            address = self.actors[start.ranks[0]].address
            self.met = (start.generation, address.remote(on_one_node))
        for worker, role in starting.roles(start, self.nodes).items():
            self._call(worker, start, method, role, self.met[1])
        world_size = len(start.ranks)
        if world_size > self.num_asked:  # should one go, a replacement is asked for by then
            self.num_asked = world_size
            self.surveyor.want([self.need] * world_size)

    def _call(self, worker: str, asked: Asked, method: str, *arguments: Any) -> None:
        if worker in self.actors:
            future = getattr(self.actors[worker], method).remote(*arguments).future()
            future.add_done_callback(functools.partial(self._answered, worker, asked))

    def _answered(self, worker: str, asked: Asked, answer: Future[Any]) -> None:
        self.answers.put((worker, asked, answer))

    def _ask_again(self, worker: str, asked: str) -> None:
        if worker not in self.actors:
            return
        match asked:
            case "next_messages":
                self._call(worker, asked, asked, self.messages_heard[worker], LISTEN_S)
            case "beat":
                self.heartbeats.ask(worker, self.now)
            case _:
                self._call(worker, asked, asked, self.job)

    def _drop(self, worker: str) -> None:
        actor = self.actors.pop(worker, None)
        node = self.nodes.pop(worker, None)
        self.messages_heard.pop(worker, None)
        self.not_ready.discard(worker)
        if node is not None:
            others = [name for name in self.actors if self.nodes[name] == node]
            self.heartbeats.drop(worker, node, others, self.not_ready, self.now)
        if actor is not None:
            ray.kill(actor)

    def close(self, limit_s: float = 3.0) -> None:
        """All workers end, and what they left in memory goes; the unanswering are killed."""
        if self.head_silent_s > HEAD_SILENT_S:  # it will not answer now, either
            limit_s = 0.5
        calls = [actor.stop.remote() for actor in self.actors.values()]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=limit_s)
        self.makers.shutdown(wait=False, cancel_futures=True)
        # the head may be gone, and the calls with it
        end = threading.Thread(target=self._end_all, daemon=True)
        end.start()
        end.join(limit_s)
        self.surveyor.close(limit_s)
        self.doubts.close()

    def _end_all(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)
        head.end_workers(self.run)  # those that were never heard of, too
