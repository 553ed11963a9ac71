"""The cluster as Ray shows it: workers on slots, what they report, and calls that never block.

The only file that imports ray.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from typing import Any

import ray
from ray._private import state as ray_state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fairseq_ray_plugin import elastic, forkserver
from fairseq_ray_plugin.memory import MemoryFolder
from fairseq_ray_plugin.options import ElasticConfig

logger = logging.getLogger(__name__)

TICK_S = 0.2
"""How long the control loop waits for something to happen before it looks at the clock."""

ANSWER_S = 2.0
"""A training process that has not answered for so long, when told to hold at once, is ended."""

SURVEY_S = 1.0
"""How often the cluster is asked for room."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker must know of the run, sent once."""

    run_id: str
    cfg: bytes
    """fairseq's configuration, pickled in the driver, where alone fairseq is imported."""

    groups: tuple[int, ...] | None
    restart_epoch: bool
    threads: int
    working_dir: str
    python_path: tuple[str, ...]
    user_dir: str | None
    user_dir_zip: bytes | None
    save_dir: str
    environment: dict[str, str]


def pack_folder(folder: str) -> bytes:
    """The Python package in `folder` as a zip file, without what Python itself caches."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for parent, folders, files in os.walk(folder):
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            for name in files:
                path = os.path.join(parent, name)
                archive.write(path, os.path.relpath(path, os.path.dirname(folder)))
    return buffer.getvalue()


class RayDistributedActor:
    """A worker: holds one slot, and a training process in it that may come and go.

    Its methods are coroutines: it answers at any time, whatever its training process does.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.memory = MemoryFolder(job.run_id)
        self.listener: socket.socket | None = None
        self.server: Connection | None = None
        self.link: Connection | None = None
        self.generation = 0
        self.pid = 0
        self.answered = False
        self.ready = False
        self.shipped: str | None = None
        self.user_dir: str | None = None

    async def prepare(self) -> None:
        """Start the preloaded server; "ready" or "unfit" follows as an event."""
        job = self.job
        self.user_dir = self._unpack_user_dir()
        self.server, end = Pipe()
        environment = {**os.environ, **job.environment}
        environment["OMP_NUM_THREADS"] = str(job.threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairseq_ray_plugin.forkserver", str(end.fileno())],
            pass_fds=[end.fileno()],
            env=environment,
        )
        end.close()
        self.server.send(
            forkserver.Preload(
                working_dir=job.working_dir, python_path=job.python_path, user_dir=self.user_dir
            )
        )
        asyncio.get_running_loop().add_reader(self.server.fileno(), self._hear_server)

    def _unpack_user_dir(self) -> str | None:
        """The user's own code, shipped to where it is missing."""
        job = self.job
        if job.user_dir is None or job.user_dir_zip is None or os.path.isdir(job.user_dir):
            return job.user_dir
        self.shipped = tempfile.mkdtemp(prefix="fairseq_ray_user_dir_")
        zipfile.ZipFile(io.BytesIO(job.user_dir_zip)).extractall(self.shipped)
        return os.path.join(self.shipped, os.path.basename(job.user_dir))

    async def next_events(self) -> list[tuple[Any, ...]]:
        """What has happened since the last call; waits for something to."""
        events = [await self.events.get()]
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return events

    def get_node_ip(self) -> str:
        """The address at which other nodes reach this one."""
        return str(ray.util.get_node_ip_address())

    def find_free_port(self) -> int:
        """A port on this node, kept open for the training process to take over."""
        if self.listener is not None:
            self.listener.close()
        family = socket.AF_INET6 if ":" in self.get_node_ip() else socket.AF_INET
        self.listener = socket.create_server(("", 0), family=family)
        return int(self.listener.getsockname()[1])

    async def address(self) -> tuple[str, int]:
        """Where the ranks of the next generation meet, if this worker runs rank 0."""
        return self.get_node_ip(), self.find_free_port()

    async def start(
        self,
        generation: int,
        rank: int,
        world_size: int,
        master: tuple[str, int],
        restore: str | None,
    ) -> None:
        """Fork a training process; the one of the last generation ends."""
        assert self.server is not None
        self._drop_link()
        self.generation, self.pid = generation, 0
        assignment = dict(
            generation=generation,
            rank=rank,
            world_size=world_size,
            master=master,
            restore=restore,
            groups=self.job.groups,
            restart_epoch=self.job.restart_epoch,
            threads=self.job.threads,
            user_dir=self.user_dir,
        )
        self.link, end = Pipe()
        self.answered = False
        listener = self.listener if rank == 0 and world_size > 1 else None
        self.server.send(("fork", (self.job.cfg, assignment), listener is not None))
        send_handle(self.server, end.fileno(), None)
        end.close()
        if listener is not None:
            send_handle(self.server, listener.fileno(), None)
            listener.close()
            self.listener = None
        asyncio.get_running_loop().add_reader(self.link.fileno(), self._hear_rank)

    async def hold(self, generation: int, at_once: bool) -> None:
        """The training process comes to rest with its state; "held" follows."""
        if generation != self.generation:
            return
        self._tell("hold", at_once)
        if at_once:
            asyncio.get_running_loop().call_later(ANSWER_S, self._end_unanswering, generation)

    def _end_unanswering(self, generation: int) -> None:
        if generation == self.generation and self.link is not None and not self.answered:
            assert self.server is not None
            self.server.send(("end", None, False))

    async def save(self, generation: int, as_checkpoint: bool) -> None:
        """The state held becomes a file; "saved" or "unsaved" follows."""
        if as_checkpoint:
            self._tell("save", os.path.join(self.job.save_dir, "checkpoint_last.pt"))
        else:
            self._tell("save", self.memory.snapshot(generation))

    async def stop(self) -> None:
        """The training process and the server end, and nothing stays in memory."""
        self._drop_link()
        if self.server is not None:
            asyncio.get_running_loop().remove_reader(self.server.fileno())
            self.server.close()
            if not self.ready:  # it imports, and does not listen
                self.process.kill()
            await asyncio.to_thread(self.process.wait)
        self.memory.release()
        if self.shipped is not None:
            shutil.rmtree(self.shipped, ignore_errors=True)

    def _tell(self, command: str, argument: Any) -> None:
        try:
            if self.link is not None:
                self.link.send((command, argument))
        except OSError:
            pass  # it has ended; the server says how

    def _drop_link(self) -> None:
        if self.link is not None:
            asyncio.get_running_loop().remove_reader(self.link.fileno())
            self.link.close()
            self.link = None

    def _hear_rank(self) -> None:
        assert self.link is not None
        try:
            while self.link is not None and self.link.poll():
                kind, update, text, by_peer = self.link.recv()
                self.answered |= kind in ("held", "raised", "finished")
                if kind == "saved":
                    self.memory.keep_only(text)
                self.events.put_nowait(
                    ("report", self.generation, kind, update, text, by_peer, self.pid)
                )
        except (EOFError, OSError):
            self._drop_link()

    def _hear_server(self) -> None:
        assert self.server is not None
        try:
            kind, pid, text = (*self.server.recv(), "")[:3]
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self.server.fileno())
            self.events.put_nowait(("gone", "its preloaded server died"))
            return
        match kind:
            case "ready":
                self.ready = True
                self.events.put_nowait(("ready",))
            case "unfit":
                self.events.put_nowait(("gone", f"it cannot import what it needs:\n{pid}"))
            case "forked":
                self.pid = pid
                self.events.put_nowait(("report", self.generation, "running", None, "", False, pid))
            case "ended" if pid == self.pid:
                if self.link is not None:
                    self._hear_rank()  # its last words come before its end
                self._drop_link()
                self.events.put_nowait(("report", self.generation, "ended", None, text, False, pid))


def connect(address: str | None) -> str:
    """Join a Ray cluster, or start a local one; returns which, for people.

    Raises:
        ConnectionError: `address` names a cluster that cannot be reached.
    """
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    named, origin = address, "--ray-address"
    if address in (None, "auto"):
        named, origin = os.environ.get("RAY_ADDRESS") or "auto", "RAY_ADDRESS"
    if named == "local":
        return _start_local(common)
    if named != "auto":
        _knock(str(named), origin)
    try:
        context = ray.init(address=named, **common)
    except ConnectionError as error:
        if named != "auto":
            raise ConnectionError(f"{origin} {named}: {_first_line(error)}") from error
        return _start_local(common)
    where = f"Ray cluster at {context.address_info['gcs_address']}"
    return where + (" (RAY_ADDRESS)" if named != "auto" and origin == "RAY_ADDRESS" else "")


def _knock(address: str, origin: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConnectionError(f'{origin} {address}: not "auto", "local" or HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{origin} {address}: no Ray cluster answers there") from error


def _start_local(common: dict[str, Any]) -> str:
    os.environ.setdefault("RAY_worker_niceness", "0")  # this machine is ours
    ray.init(address="local", include_dashboard=False, **common)
    return f"local Ray on this machine, {int(ray.cluster_resources().get('CPU', 0))} CPUs"


class RayCluster:
    """Workers on a Ray cluster; carries out the control loop's actions and says what happens."""

    def __init__(self, job: Job, config: ElasticConfig, max_ranks: int | None) -> None:
        self.job = ray.put(job)
        self.need = {"CPU": float(config.cpus_per_worker)}
        if not config.cpu:
            self.need["GPU"] = 1.0
        # an autoscaler adds nodes for what is asked for and not there, not for what would be of
        # use; the request is the cluster's, so it also takes the place of one a killed driver left
        request_resources(bundles=[self.need] * (max_ranks or 0))
        self.config = config
        self.actors: dict[str, Any] = {}
        self.nodes: dict[str, str] = {}
        self.listening: dict[Any, str] = {}
        """Outstanding `next_events` calls -> worker."""
        self.calls: dict[Any, str] = {}
        """Other outstanding calls -> worker; only their failure matters."""
        self.not_ready: set[str] = set()
        self.surveyed = 0.0

    def observe(self, signal: int | None = None) -> elastic.Observation:
        """What there is now; returns as soon as something has happened, or after a tick."""
        waiting = [*self.listening, *self.calls]
        done: list[Any] = []
        if waiting:
            done, rest = ray.wait(waiting, timeout=TICK_S)
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
            done += more
        else:
            time.sleep(TICK_S)
        events: list[elastic.Event] = []
        for call in done:
            events += self._outcome(call)
        now = time.monotonic()
        room: dict[str, int] = {}
        if now - self.surveyed >= SURVEY_S:
            self.surveyed = now
            room = self._survey(now)
        return elastic.Observation(now=now, room=room, events=tuple(events), signal=signal)

    def _outcome(self, call: Any) -> list[elastic.Event]:
        is_listening = call in self.listening
        worker = self.listening.pop(call, None) or self.calls.pop(call)
        try:
            result = ray.get(call, timeout=0)
        except RayError as error:
            if worker not in self.actors:
                return []
            self._drop(worker)
            return [elastic.Gone(worker, f"worker lost: {_first_line(error)}")]
        if not is_listening or worker not in self.actors:
            return []
        self._listen(worker)
        return [event for item in result for event in self._event(worker, item)]

    def _event(self, worker: str, item: tuple[Any, ...]) -> list[elastic.Event]:
        match item:
            case ("ready",):
                self.not_ready.discard(worker)
                return [elastic.Ready(worker)]
            case ("gone", reason):
                self._drop(worker)
                return [elastic.Gone(worker, reason)]
            case ("report", generation, kind, update, text, by_peer, pid):
                return [elastic.Report(worker, generation, kind, update, text, by_peer, pid)]
        raise AssertionError(item)

    def _survey(self, now: float) -> dict[str, int]:
        """Node -> workers that fit there beside what runs there.

        From what the nodes say is free now: cluster_resources() counts a dead node for 13 s and
        a draining one for ever.
        """
        draining = ray_state.state.get_draining_nodes()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        unsettled = {self.nodes[w] for w in self.not_ready if w in self.nodes}
        room = {}
        for node, free in ray_state.available_resources_per_node().items():
            slots = int(min(free.get(kind, 0.0) // amount for kind, amount in self.need.items()))
            # a worker just placed may not have taken its resources yet
            if slots > 0 and node in alive and node not in draining and node not in unsettled:
                room[node] = slots
        return room

    def describe(self) -> str:
        """What of the cluster counts for a worker, for people."""
        free = ray.available_resources()
        kinds = ("CPU",) if self.config.cpu else ("GPU", "CPU")
        parts = [f"{free.get(kind, 0):.0f} {kind}s free" for kind in kinds]
        return (
            f"Ray shows {len(ray_state.available_resources_per_node())} nodes, {', '.join(parts)}"
        )

    def perform(self, action: elastic.Action) -> None:
        """Carry out an action on workers; never waits for one."""
        match action:
            case elastic.Place(worker, node):
                self._place(worker, node)
            case elastic.Remove(worker):
                self._drop(worker)
            case elastic.Start():
                self._start(action)
            case elastic.Hold(worker, generation, at_once):
                self._call(worker, "hold", generation, at_once)
            case elastic.Save(worker, generation, as_checkpoint):
                self._call(worker, "save", generation, as_checkpoint)

    def _place(self, worker: str, node: str) -> None:
        actor = (
            ray.remote(RayDistributedActor)
            .options(
                num_cpus=self.config.cpus_per_worker,
                num_gpus=0 if self.config.cpu else 1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self.job)
        )
        self.actors[worker], self.nodes[worker] = actor, node
        self.not_ready.add(worker)
        self._call(worker, "prepare")
        self._listen(worker)

    def _start(self, start: elastic.Start) -> None:
        # Ray hands the first worker's answer to the others: the driver need not wait for it
        master = self.actors[start.ranks[0]].address.remote()
        self.calls[master] = start.ranks[0]
        restore = start.source.path if start.source else None
        for rank, worker in enumerate(start.ranks):
            self._call(worker, "start", start.generation, rank, len(start.ranks), master, restore)

    def _call(self, worker: str, method: str, *arguments: Any) -> None:
        if worker in self.actors:
            self.calls[getattr(self.actors[worker], method).remote(*arguments)] = worker

    def _listen(self, worker: str) -> None:
        self.listening[self.actors[worker].next_events.remote()] = worker

    def _drop(self, worker: str) -> None:
        actor = self.actors.pop(worker, None)
        self.nodes.pop(worker, None)
        self.not_ready.discard(worker)
        if actor is not None:
            ray.kill(actor)

    def close(self, limit_s: float = 3.0) -> None:
        """All workers end, and what they left in memory goes; the unanswering are killed."""
        calls = [actor.stop.remote() for actor in self.actors.values()]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=limit_s)
        for worker in list(self.actors):
            self._drop(worker)
        request_resources(bundles=[])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
