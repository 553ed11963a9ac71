"""What Ray's head knows: which nodes there are, and a run's workers by their names.

Workers are detached actors: they outlive the loop that placed them, and the next one finds them.
The head may be slow, or gone: whoever asks waits.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray
from ray._private import state as ray_state
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import internal_kv

from fairseq_ray_plugin.assignment import Found
from fairseq_ray_plugin.surveyor import Bundles, Survey

NAMESPACE = "fairseq_ray_plugin"
"""Ray's, for all actors of all runs."""

ADOPT_LIMIT_S = 10.0
"""A worker that does not tell a new loop what it is by then is done without."""

NODE_DIED = ("its node has died", "node was terminated", "node was preempted")
"""What Ray says of an actor that went with its node."""


def name_for(run: str, worker: str) -> str:
    """By which Ray knows a worker of a run."""
    return f"{run}/{worker}"


def find_workers(run: str) -> dict[str, tuple[Any, Found]]:
    """The workers of a run: their actors, and what each says of itself.

    Those that do not answer in time are ended.
    """
    actors = _actors(run)
    calls = {worker: actor.adopt.remote() for worker, actor in actors.items()}
    if calls:
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=ADOPT_LIMIT_S)
    found = {}
    for worker, call in calls.items():
        try:
            found[worker] = (actors[worker], ray.get(call, timeout=0.1))
        except (RayError, GetTimeoutError):
            ray.kill(actors[worker])
    return found


def end_workers(run: str) -> None:
    """All workers of a run are ended."""
    for actor in _actors(run).values():
        ray.kill(actor)


def _actors(run: str) -> dict[str, Any]:
    actors = {}
    for name in ray.util.list_named_actors():
        its_run, _, worker = name.partition("/")
        if its_run == run:
            with contextlib.suppress(ValueError):  # it has just gone
                actors[worker] = ray.get_actor(name)
    return actors


def nodes_outlast_head() -> float:
    """For how many seconds nodes wait for a head that comes back; 0: it has no storage."""
    # the head says so for Ray's usage statistics, whether those are sent or not
    storage = internal_kv._internal_kv_get(b"extra_usage_tag_gcs_storage", namespace=b"usage_stats")
    if storage in (None, b"memory"):
        return 0.0
    # as the nodes have it, if all have the same
    return float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", 60))


def survey() -> Survey:
    """What there is now."""
    # from what the nodes say is free now: cluster_resources() counts a dead node for 13 s and a
    # draining one for ever
    free = ray_state.available_resources_per_node()
    daemons = {
        node["NodeID"]: (node["NodeManagerAddress"], int(node["NodeManagerPort"]))
        for node in ray.nodes()
        if node["Alive"]
    }
    draining = {n: at_ms / 1000 for n, at_ms in ray_state.state.get_draining_nodes().items()}
    there = {node: amounts for node, amounts in free.items() if node in daemons}
    return Survey(there, draining, daemons)


def request(bundles: Bundles) -> None:
    """An autoscaler is to have nodes for so much, in all."""
    from ray.autoscaler import sdk  # not needed by workers, whose start is waited for

    sdk.request_resources(bundles=bundles)


def reason_of(text: str) -> str:
    """Of Ray's error on a dead actor the line that says why, after those that say which."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    return (lines[1:] or lines or ["no reason given"])[0].strip()
