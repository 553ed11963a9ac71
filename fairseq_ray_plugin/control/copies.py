"""Where the state of training is: every copy within reach, and which of them is the freshest."""

from __future__ import annotations

from collections.abc import Container, Iterable

from fairseq_ray_plugin.control.state import Standing, Step
from fairseq_ray_plugin.protocol import Copy, HeldBy, InMemory, InSaveDir

_LASTS = (InSaveDir, InMemory, HeldBy)
"""Of copies after the same update, the one that will outlive the others: disk, node, process."""


def freshest(copies: Iterable[Copy], at_hand: Container[str] | None = None) -> Copy | None:
    """The copy after the most updates.

    Args:
        at_hand: nodes whose memory can be read now; of copies after the same update one that is
            elsewhere comes last.
    """

    def order(copy: Copy) -> tuple[int, bool, int]:
        place = copy.place
        is_away = at_hand is not None and isinstance(place, InMemory) and place.node not in at_hand
        return copy.update, not is_away, -_LASTS.index(type(place))

    return max(copies, key=order, default=None)


def all_copies(s: Step) -> list[Copy]:
    """What is held, in the memory of nodes that are not known to be dead, and in the save dir."""
    kept = [s.state.checkpoint] if s.state.checkpoint else []
    return [*held(s), *s.state.snapshots.values(), *kept]


def held(s: Step) -> list[Copy]:
    """What ranks at rest hold; the lowest rank first, on a node that stays before one that goes.

    The lowest has been saving the checkpoints, where its node alone sees the save dir.
    """
    holders = [
        (not s.stays(name), worker.rank, name, worker.held)
        for name, worker in s.workers.items()
        if worker.held is not None and worker.standing is not Standing.SILENT
    ]
    return [Copy(update, HeldBy(name)) for _, _, name, update in sorted(holders)]
