"""How a worker is placed: what it takes of a node, and how long it lives unasked."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fairseq_ray_plugin.options import ElasticConfig

UNASKED_LIMIT_S = 120.0
"""A worker that nobody has asked anything for so long ends: its loop is gone for good."""

NODES_OUTLAST_HEAD_S = 60.0
"""Ray's own limit for nodes without a head, where nothing else is known of it."""

RESCUE_S = 30.0
"""So long before that, or before it ends, a worker saves what its rank holds."""


def need_of(config: ElasticConfig) -> dict[str, float]:
    """A worker's resources."""
    need: dict[str, float] = {"CPU": config.cpus_per_worker}
    return need if config.cpu else {**need, "GPU": 1}


def save_after_s(nodes_outlast_head_s: float, unasked_limit_s: float) -> float:
    """More than the time between two questions; never where the loop ends with the workers.

    Args:
        nodes_outlast_head_s: 0: not known.
    """
    outlast_s = nodes_outlast_head_s or NODES_OUTLAST_HEAD_S
    if unasked_limit_s == float("inf"):
        return unasked_limit_s
    return max(RESCUE_S, min(outlast_s, unasked_limit_s) - RESCUE_S)


def make(actor: type, name: str, node: str, config: ElasticConfig, *arguments: Any) -> Any:
    """A worker is on its way to its node.

    Args:
        actor: its class.
        arguments: of its constructor.
    """
    need = need_of(config)
    return (
        ray.remote(actor)
        .options(
            # it outlives who made it, and another loop finds it
            name=name,
            lifetime="detached",
            num_cpus=need["CPU"],
            num_gpus=need.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(*arguments)
    )
