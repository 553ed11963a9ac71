"""Which type of node Ray's autoscaler starts next: one that can be had, spot before on-demand.

Ray counts what a type has, not whether AWS just refused it, and would ask for the same sold-out
spot instances for ever. It notes refusals, though, for half an hour, and lets others do the
counting: the head is started with

    RAY_AUTOSCALER_UTILIZATION_SCORER=fairseq_ray_plugin.aws.preference.score

Types that are alike otherwise are taken by name, the first of the alphabet first: `1_spot_...`
before `2_on_demand_...`.
"""

from __future__ import annotations

from typing import Any


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """How well a node of this type would do: Ray's own score, behind whether it can be had.

    Args:
        node_resources: that it has.
        resources: that are asked for, a dictionary for each worker.
        node_availability_summary: Ray's notes on which types were started or refused.

    Returns:
        The greater the better; None: nothing that is asked for fits.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    by_ray = _default_utilization_scorer(
        node_resources,
        resources,
        node_type,
        node_availability_summary=node_availability_summary,
    )
    if by_ray is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    # a GPU node where no GPU is asked for stays what comes last
    gpu_ok, *rest = by_ray
    return (gpu_ok, last is None or last.is_available, *rest, _earliness(node_type))


def _earliness(name: str) -> tuple[int, ...]:
    """The greater the earlier the name is in the alphabet."""
    return (*(-ord(letter) for letter in name), 1)
