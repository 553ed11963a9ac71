"""Who runs which rank of a generation, as each worker is told."""

from __future__ import annotations

from collections.abc import Mapping

from fairseq_ray_plugin.assignment import Role
from fairseq_ray_plugin.protocol import HeldBy, InMemory, StandBy, Start


def roles(start: Start | StandBy, nodes: Mapping[str, str]) -> dict[str, Role]:
    """Worker -> its role; of ranks that stand by it is not known yet what they go on from.

    Args:
        nodes: of the workers.
    """
    place, keepers, nearby = None, frozenset[str](), dict[str, str]()
    if isinstance(start, Start):
        keepers, nearby = start.keepers, dict(start.nearby)
        if start.source is not None:
            place = start.source.place
            assert not isinstance(place, HeldBy), "a generation goes on from a file"
    return {
        worker: Role(
            generation=start.generation,
            rank=rank,
            world_size=len(start.ranks),
            restore=nearby.get(nodes[worker], place.path) if place is not None else None,
            from_snapshot=isinstance(place, InMemory),
            keeps_snapshots=worker in keepers,
            stands_by=isinstance(start, StandBy),
            is_planned=isinstance(start, StandBy) and start.is_planned,
        )
        for rank, worker in enumerate(start.ranks)
    }
