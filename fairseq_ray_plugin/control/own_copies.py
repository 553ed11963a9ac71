"""Each node's own copy of the state at a stop, from which its ranks go on without the network."""

from __future__ import annotations

from fairseq_ray_plugin.control.state import UNHEARD_S, Standing, Step
from fairseq_ray_plugin.protocol import Copy, Drop, InMemory, Save


def put_by(s: Step, copy: Copy, node: str) -> None:
    """Other nodes than the one that has the copy write it, too, where a rank holds it."""
    busy = {s.workers[name].node for name in s.state.putting_by if name in s.workers}
    chosen: dict[str, str] = {}
    for name in reversed(s.of_generation(Standing.READY)):  # of a node, the lowest rank
        worker = s.workers[name]
        if worker.held == copy.update and worker.node not in {node, *busy} and s.stays(name):
            chosen[worker.node] = name
    s.tell(chosen.values(), Save(as_checkpoint=False))
    s.set(putting_by=s.state.putting_by | frozenset(chosen.values()))


def may_be_written(s: Step) -> bool:
    """Whether one that was asked for may still come, from a rank that is there."""
    return any(
        name in s.workers and s.workers[name].held is not None and can_write(s, name)
        for name in s.state.putting_by
    )


def can_write(s: Step, worker: str) -> bool:
    there = s.workers[worker]
    is_up = there.standing not in (Standing.STARTING, Standing.SILENT)
    return is_up and not s.is_unheard(there.node, UNHEARD_S)


def drop_all_but(s: Step, keepers: list[str]) -> None:
    """What has been read is of no use on nodes that put no newer ones by; its pages are used again.

    Args:
        keepers: workers on those that do.
    """
    nodes = {s.workers[name].node for name in keepers}
    for node, copy in s.state.nearby.items():
        assert isinstance(copy.place, InMemory)
        if node not in nodes and copy != s.state.source and s.state.snapshots.get(node) == copy:
            s.set(snapshots={n: c for n, c in s.state.snapshots.items() if n != node})
            there = [n for n, w in s.workers.items() if w.node == node and can_write(s, n)]
            s.tell(there[:1], Drop(frozenset({copy.place.path})))
