"""How a generation stops: the ranks hold their state, and the freshest is saved.

The same path for every cause. A rank cannot complete update N+1 before all have completed N, so
the states held differ by one update at the most.
"""

from __future__ import annotations

import dataclasses

from fairseq_ray_plugin.control import failures, nodes
from fairseq_ray_plugin.control.failures import Cause, Failure
from fairseq_ray_plugin.control.state import UNHEARD_S, Phase, Standing, Step
from fairseq_ray_plugin.protocol import Hold, Save, Source

SILENCE_S = 1.0
"""A rank whose worker has not been heard of for so long, at a stop, is not waited for."""

ANSWER_LIMIT_S = 25.0
"""How long any rank is waited for; an unanswering process is ended by its worker before that."""

STACKS_LIMIT_S = 10.0
"""How much longer where the stacks of all threads are taken first."""

ECHO_S = 0.5
"""How long the other ranks have, after an exception of one, to raise it, too."""

GRACE_S = 60.0
"""How long a planned stop waits for the first rank to end the update it is in."""

SAVE_LIMIT_S = 900.0
"""A state that is not on its way to disk by then never will be."""

NUM_LOSSES = 5
"""How many of the last losses tell how often they come."""


def fail(s: Step, failure: Failure) -> None:
    """Something went wrong in the generation: it stops, if it was training."""
    s.set(failures=(*s.state.failures, failure))
    if failure.node is not None and not (failure.by_peer or failure.with_node):
        s.set(nodes=nodes.noted(s.state.nodes, failure.node, s.now))
    if s.state.phase is Phase.TRAINING:
        begin_stop(s, failure.cause, at_once=failure.by_peer or failure.cause is not Cause.FAILED)


def begin_stop(s: Step, cause: Cause, at_once: bool) -> None:
    state = s.state
    s.set(cause=cause)
    if state.stopped_at is None:
        s.set(stopped_at=s.now)
    if cause in (Cause.LOST, Cause.PREEMPTED):
        s.set(losses=(*state.losses, s.now)[-NUM_LOSSES:])
    s.enter(Phase.STOPPING)
    _hold_the_rest(s, at_once)


def _hold_the_rest(s: Step, at_once: bool) -> None:
    s.set(at_once=at_once, since=s.now)
    with_stacks = s.state.cause is Cause.HUNG
    for name in _open_ranks(s):
        s.actions.append(Hold(name, s.state.generation, at_once, with_stacks))


def _open_ranks(s: Step) -> list[str]:
    return [
        name
        for name in s.state.ranks
        if name in s.workers and s.workers[name].standing is Standing.TRAINING
    ]


def stop(s: Step) -> None:
    """Go on once every rank has answered, is dead, or has been silent for too long."""
    state = s.state
    open_ranks = _open_ranks(s)
    if open_ranks and not state.at_once:
        # one rank at rest means that the others wait for it in a collective
        answered = len(open_ranks) < sum(name in s.workers for name in state.ranks)
        lost = any(f.by_peer or f.cause is not Cause.FAILED for f in state.failures)
        limit = ECHO_S if state.cause is Cause.FAILED else 0 if answered else _grace(s)
        if lost or s.now - state.since >= limit:
            _hold_the_rest(s, at_once=True)
        return
    limit = ANSWER_LIMIT_S + (STACKS_LIMIT_S if state.cause is Cause.HUNG else 0)
    waited = s.now - state.since
    silent = [
        name
        for name in open_ranks
        if waited > limit or (waited > SILENCE_S and s.is_unheard(name, SILENCE_S))
    ]
    if len(silent) < len(open_ranks):
        return
    for name in silent:
        s.set_worker(name, standing=Standing.SILENT)
        fail(s, Failure(Cause.LOST, f"{s.rank(name)} does not answer", with_node=True))
    finished = [n for n in s.with_standing(Standing.FINISHED) if n in state.ranks]
    if state.ranks[0] in finished:
        s.end("finished", 0, f"training finished after {state.update} updates")
        return
    for name in finished:  # what they hold is the last update, with rank 0's checkpoint to come
        s.set_worker(name, standing=Standing.READY)
    first = failures.first_cause(s.state.failures)
    s.log("stopped", failures.describe(state.cause, first))
    if first is not None and state.signal is None and _give_up(s, first):
        return
    save_freshest(s)


def _grace(s: Step) -> float:
    """Half of the time that is left to a node may go into ending an update."""
    left = [deadline - s.state.since for deadline in s.state.leaving.values()]
    return min([GRACE_S, *(max(0.0, seconds / 2) for seconds in left)])


def _give_up(s: Step, failure: Failure) -> bool:
    """End the run where another try would only fail again; leave out nodes that always fail."""
    raised_on = {f.node for f in s.state.failures if f.cause is Cause.FAILED and not f.by_peer}
    if len(raised_on) > 1:  # no one node's fault
        failure = dataclasses.replace(failure, node=None)
    s.set(strikes=s.state.strikes.add(s.state.update, failure))
    others = {s.workers[name].node for name in s.usable()} - {failure.node}
    enough = sum(s.workers[name].node in others for name in s.usable()) >= s.config.min_workers
    verdict = s.state.strikes.verdict(s.config.max_failures, enough)
    if verdict is not None:
        s.end("failed", 1, verdict)
        return True
    node = failure.node
    if (
        node is not None
        and enough
        and (s.state.strikes.raised_again_on(node) or nodes.is_suspect(s.state.nodes, node, s.now))
    ):
        s.set(nodes=nodes.left_out(s.state.nodes, node, s.now))
        pause = s.state.nodes[node].use_after - s.now
        s.log(
            "left out", f"node {node[:8]} for {pause:.0f} s: training fails there again and again"
        )
    return False


def save_freshest(s: Step) -> None:
    """The state after the most updates becomes a file, unless there is such a file."""
    state = s.state
    held = {
        name: update
        for name in state.ranks
        if name in s.workers and (update := s.workers[name].held) is not None
    }
    freshest = max(held.values(), default=None)
    to_end = state.signal is not None
    there = {s.workers[name].node for name in s.usable()}
    kept = max((x.update or 0 for n, x in state.snapshots.items() if n in there), default=-1)
    if freshest is None or (kept >= freshest and not to_end):
        if to_end:
            newest = f"{state.checkpoint.path} is newest" if state.checkpoint else "nothing to save"
            s.end("interrupted", 128 + (state.signal or 0), f"interrupted: {newest}")
        else:
            s.enter(Phase.GATHERING)
        return
    # the lowest rank: it has been saving the checkpoints, where its node alone sees the save dir;
    # but no node that goes away, whose memory goes with it
    holders = [name for name, update in held.items() if update == freshest]
    holder = next((name for name in holders if s.stays(name)), holders[0])
    as_checkpoint = to_end or not s.stays(holder)
    s.set(saver=holder, saving_checkpoint=as_checkpoint)
    s.actions.append(Save(holder, state.generation, as_checkpoint))
    s.enter(Phase.SAVING)


def check_saving(s: Step) -> None:
    """Whoever saves may be cut off, or its disk stuck."""
    saver = s.state.saver
    if saver and (s.now - s.state.since > SAVE_LIMIT_S or s.is_unheard(saver, UNHEARD_S)):
        s.log("unsaved", f"{s.rank(saver)} does not answer")
        unsaved(s, saver)


def saved(s: Step, source: Source) -> None:
    """The state has become a file."""
    state = s.state
    if state.saving_checkpoint:
        s.set(checkpoint=Source(source.path, source.update, None))
        if state.signal is not None:
            message = f"interrupted after update {state.update}; saved {source.path}"
            s.end("interrupted", 128 + state.signal, message)
            return
    else:
        keep(s, source)
    s.enter(Phase.GATHERING)


def keep(s: Step, source: Source) -> None:
    """A node has a newer state in its memory."""
    assert source.node is not None
    s.set(snapshots={**s.state.snapshots, source.node: source})


def unsaved(s: Step, worker: str) -> None:
    """A state is lost: the next freshest serves."""
    if worker in s.workers:
        s.set_worker(worker, held=None)
    if s.state.phase is Phase.SAVING and worker == s.state.saver:
        save_freshest(s)
