"""The cluster as Ray shows it: workers on slots, what they report, and calls that never block.

The only room that uses Ray; `launch` imports it to connect.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection
from typing import Any

import ray
from ray._private import state as ray_state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fairseq_ray_plugin import protocol
from fairseq_ray_plugin.options import ElasticConfig
from fairseq_ray_plugin.protocol import Job
from fairseq_ray_plugin.worker.worker import Worker

logger = logging.getLogger(__name__)

TICK_S = 0.2
"""How long the control loop waits for something to happen before it looks at the clock."""

HEARTBEAT_S = 0.5
"""A worker with nothing to say says so this often."""

NO_DEADLINE_S = 600.0
"""When a node is taken to be gone that is drained without saying by when."""

NODE_DIED = ("its node has died", "node was terminated", "node was preempted")
"""What Ray says of an actor that went with its node."""

SURVEY_S = 1.0
"""How often the cluster is asked for room."""


class RayDistributedActor(Worker):
    """A worker, as a Ray actor: holds one slot, and a training process in it."""

    def get_node_ip(self) -> str:
        return str(ray.util.get_node_ip_address())

    def get_node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def connect(address: str | None) -> str:
    """Join a Ray cluster, or start a local one; returns which, for people.

    Raises:
        ConnectionError: `address` names a cluster that cannot be reached.
    """
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": True}
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
            raise ConnectionError(
                f"{origin} {named}: {str(error).strip().splitlines()[0]}"
            ) from error
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
        self.num_asked = max_ranks or 0
        self.actors: dict[str, Any] = {}
        self.nodes: dict[str, str] = {}
        self.heard: dict[str, float] = {}
        self.listening: dict[Any, str] = {}
        """Outstanding `next_events` calls -> worker."""
        self.calls: dict[Any, str] = {}
        """Other outstanding calls -> worker; only their failure matters."""
        self.not_ready: set[str] = set()
        self.surveyed = 0.0

    def observe(self, signal: int | None = None) -> protocol.Observation:
        """What there is now; returns as soon as something has happened, or after a tick."""
        waiting = [*self.listening, *self.calls]
        done: list[Any] = []
        if waiting:
            done, rest = ray.wait(waiting, timeout=TICK_S)
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
            done += more
        else:
            time.sleep(TICK_S)
        now = time.monotonic()
        events: list[protocol.Event] = []
        for call in done:
            events += self._outcome(call, now)
        room: dict[str, int] = {}
        draining: dict[str, float] = {}
        if now - self.surveyed >= SURVEY_S:
            self.surveyed = now
            draining = self._draining(now)
            room = self._survey(draining)
        return protocol.Observation(
            now=now,
            room=room,
            draining={n: t for n, t in draining.items() if n in self.nodes.values()},
            heard=self.heard,
            events=tuple(events),
            signal=signal,
        )

    def _outcome(self, call: Any, now: float) -> list[protocol.Event]:
        is_listening = call in self.listening
        worker = self.listening.pop(call, None) or self.calls.pop(call)
        try:
            result = ray.get(call, timeout=0)
        except RayError as error:
            # a call that was to get another worker's answer fails when that one dies
            actor = self.actors.get(worker)
            culprit = getattr(error, "actor_id", None)
            if actor is None or (culprit and culprit != actor._actor_id.hex()):
                return []
            self._drop(worker)
            text = str(error)
            with_node = any(sign in text for sign in NODE_DIED)
            return [protocol.Gone(worker, f"worker lost: {_reason(text)}", with_node)]
        if not is_listening or worker not in self.actors:
            return []
        self.heard[worker] = now
        self._listen(worker)
        return [event for item in result for event in self._event(worker, item, now)]

    def _event(self, worker: str, item: tuple[Any, ...], now: float) -> list[protocol.Event]:
        match item:
            case ("ready",):
                self.not_ready.discard(worker)
                return [protocol.Ready(worker)]
            case ("gone", reason):
                self._drop(worker)
                return [protocol.Gone(worker, reason)]
            case ("notice", reason, left_s):
                return [protocol.Notice(worker, reason, now + left_s)]
            case ("report", generation, kind, update, text, by_peer, pid):
                return [protocol.Report(worker, generation, kind, update, text, by_peer, pid)]
        raise AssertionError(item)

    def _draining(self, now: float) -> dict[str, float]:
        """Node that Ray takes away -> its deadline, on the clock of `now`."""
        return {
            node: now + (at_ms / 1000 - time.time() if at_ms else NO_DEADLINE_S)
            for node, at_ms in ray_state.state.get_draining_nodes().items()
        }

    def _survey(self, draining: Collection[str]) -> dict[str, int]:
        """Node -> workers that fit there beside what runs there.

        From what the nodes say is free now: cluster_resources() counts a dead node for 13 s and
        a draining one for ever.
        """
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

    def perform(self, action: protocol.Action) -> None:
        """Carry out an action on workers; never waits for one."""
        match action:
            case protocol.Place(worker, node):
                self._place(worker, node)
            case protocol.Remove(worker):
                self._drop(worker)
            case protocol.Start():
                self._start(action)
            case protocol.Hold(worker, generation, at_once, with_stacks):
                self._call(worker, "hold", generation, at_once, with_stacks)
            case protocol.Save(worker, generation, as_checkpoint):
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

    def _start(self, start: protocol.Start) -> None:
        # Ray hands the first worker's answer to the others: the driver need not wait for it
        master = self.actors[start.ranks[0]].address.remote()
        self.calls[master] = start.ranks[0]
        restore = start.source.path if start.source else None
        world_size = len(start.ranks)
        for rank, worker in enumerate(start.ranks):
            keeps = worker in start.keepers
            self._call(worker, "start", start.generation, rank, world_size, master, restore, keeps)
        if world_size > self.num_asked:  # should one go, a replacement is asked for by then
            self.num_asked = world_size
            request_resources(bundles=[self.need] * world_size)

    def _call(self, worker: str, method: str, *arguments: Any) -> None:
        if worker in self.actors:
            self.calls[getattr(self.actors[worker], method).remote(*arguments)] = worker

    def _listen(self, worker: str) -> None:
        self.listening[self.actors[worker].next_events.remote(HEARTBEAT_S)] = worker

    def _drop(self, worker: str) -> None:
        actor = self.actors.pop(worker, None)
        self.nodes.pop(worker, None)
        self.heard.pop(worker, None)
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


def _reason(text: str) -> str:
    """Of Ray's error on a dead actor the line that says why, after those that say which."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return (lines[1:] or lines or ["no reason given"])[0].strip()
