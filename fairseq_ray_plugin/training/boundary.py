"""The training state of a rank at its last boundary, and the right to read it.

A boundary is the moment between two updates, where the state is the same on every rank. From the
end of an update to the optimizer step of the next one nothing of the state changes but the little
of which `changing` has copies, so a second thread may save it even while the first is blocked in a
collective whose other end is dead.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

from fairseq.optim.amp_optimizer import AMPOptimizer

from fairseq_ray_plugin.activity import Activity, Logged
from fairseq_ray_plugin.checkpoints.contents import EXTRA
from fairseq_ray_plugin.training import exact, state_file
from fairseq_ray_plugin.training.changing import Changing
from fairseq_ray_plugin.training.deposit import DUE, Plan
from fairseq_ray_plugin.training.own_time import OwnTime
from fairseq_ray_plugin.training.record import Points
from fairseq_ray_plugin.training.save_dir import SaveDir
from fairseq_ray_plugin.training.steps import Steps
from fairseq_ray_plugin.training.to_host import ToHost

OPTIMIZER_ADDED = "optimizer_added"
"""Key in our part: fairseq would not have put the optimizer's state into a checkpoint."""


REST_LIMIT_S = 5.0
"""A rank that comes to rest as planned ends its writers, and is waited for no longer."""


@dataclasses.dataclass(frozen=True)
class Boundary:
    """What of the state is not in the trainer."""

    update: int
    iterator: dict[str, Any]
    best: float | None = None
    early_stop: tuple[float, int] | None = None
    """fairseq's --patience: the best loss and the validations since; stock forgets them."""

    val_loss: float | None = None
    pending: bool = False
    """The validation and checkpoint that are due at this update are still to come."""

    lr_step: tuple[int, float | None] | None = None
    """The learning rate step at the end of an epoch that is still to come."""


class StateKeeper:
    """One rank's state at its last boundary, and the right to read it.

    Args:
        rank, world_size: of this generation.
        on_boundary: called with the number of updates after each one completed.
        on_doing: called with what comes next, or still goes on.
        on_step: called when an update begins, with its batch at hand.
        on_logged: called with what training says of itself, between updates.
        on_rest: called when training comes to rest as planned, before anybody may end it.
        on_hold: called with the number of updates when training comes to rest because
            `hold_requested` is set.
        on_checkpoint: called with path and updates after each checkpoint this rank wrote.
        on_out_of_memory: called where training goes on after a mini-batch that was too large for
            the GPU, with the number of updates, and whether it was dropped.
        on_due: called with the updates of a checkpoint that is due, and what puts it by in a path;
            returns whether there was room.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        on_boundary: Callable[[int], None] = lambda update: None,
        on_doing: Callable[[Activity], None] = lambda activity: None,
        on_step: Callable[[], None] = lambda: None,
        on_logged: Callable[[Logged], None] = lambda logged: None,
        on_rest: Callable[[], None] = lambda: None,
        on_hold: Callable[[int], None] = lambda update: None,
        on_checkpoint: Callable[[str, int], None] = lambda path, update: None,
        on_out_of_memory: Callable[[int, bool], None] = lambda update, dropped: None,
        on_due: Callable[[int, Callable[[str], object]], bool] = lambda update, put_by: False,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.on_boundary, self.on_doing = on_boundary, on_doing
        self.on_step, self.on_logged, self.on_rest = on_step, on_logged, on_rest
        self.on_hold, self.on_checkpoint, self.on_due = on_hold, on_checkpoint, on_due
        self.on_out_of_memory = on_out_of_memory
        self.steps, self.own = Steps(), OwnTime()
        self.hold_requested = threading.Event()
        self.asked = 0
        """Which generation was last to be held."""

        self.points = Points(rank)
        self.save_dir = SaveDir()
        self.folders: tuple[str, ...] = ()
        """Where snapshots of this node are, which its ranks can read."""

        self.catch_up = False
        """The state was loaded with a validation and checkpoint pending."""
        self.training: str | None = None
        """What identifies the training since it was begun anew."""

        self.trainer: Any = None
        self.boundary: Boundary | None = None
        # held by the training thread from the optimizer step to the boundary after it, and
        # for ever by whoever freezes the state
        self._gate = threading.Lock()
        self._freezing = threading.Lock()  # who comes second has what the first one gets
        self._in_update = False
        self._frozen = False
        self._to_host = ToHost()
        self._changing: Changing | None = None

    # called by the training thread

    def attach(self, trainer: Any, boundary: Boundary) -> None:
        """The trainer has loaded its state: from now on it can be frozen."""
        optimizer_step, lr_step = trainer.task.optimizer_step, trainer.lr_step
        steps = _Steps(trainer.optimizer)

        @functools.wraps(optimizer_step)
        def guarded_optimizer_step(*args: Any, **kwargs: Any) -> None:
            if not self._in_update:
                self.steps.end("gradients")
                self._gate.acquire()
                self._in_update = True
            steps.begin()
            optimizer_step(*args, **kwargs)
            if not steps.were_made:
                # gradients overflowed, and --amp makes the update again from within, with all its
                # collectives: until then the state stays that of the last boundary
                self._in_update = False
                self._gate.release()

        @functools.wraps(lr_step)
        def recorded_lr_step(epoch: int, val_loss: float | None = None) -> float:
            with self._gate:
                rate = lr_step(epoch, val_loss)
                if self.boundary is not None:
                    self.boundary = dataclasses.replace(self.boundary, lr_step=None)
                return rate

        trainer.task.optimizer_step, trainer.lr_step = guarded_optimizer_step, recorded_lr_step
        with self._gate:
            self._changing = Changing(trainer)
            self.trainer = trainer
            self._is_now(boundary)

    def record(self, boundary: Boundary) -> None:
        """The state is that of `boundary`; blocks for ever where it has been frozen before."""
        if not self._in_update:
            self._gate.acquire()
        self._is_now(boundary)
        self._in_update = False
        self._gate.release()

    def _is_now(self, boundary: Boundary) -> None:
        assert self._changing is not None
        self._changing.record()
        self._to_host.mark()
        self.boundary = boundary

    def put_by(self, path: str) -> int:
        """Write the state at the boundary that training is at; returns its number of updates.

        The file appears whole or not at all. OSError passes through.
        """
        # not behind the gate: whoever wants to freeze the state meanwhile only reads it, too
        assert self.boundary is not None and not self._in_update
        state_file.put_by(self._state(self.boundary), path)
        return self.boundary.update

    def put_by_due(
        self, path: str, boundary: Boundary, extra_state: dict[str, Any], plan: Plan
    ) -> int:
        """As `put_by`, of a checkpoint: with what fairseq adds to it, and what is to be done."""
        state = self._state(boundary)
        state["extra_state"].update(extra_state)
        state_file.put_by({**state, DUE: plan}, path)
        return boundary.update

    def rest(self) -> None:
        """Training stays at this boundary until the process ends, if that was asked for."""
        if self.hold_requested.is_set():
            with self._freezing:  # who asks for the state meanwhile gets it when this is done
                self.on_rest()
                self.points.close()
            self.on_hold(self.freeze())
            threading.Event().wait()

    # called by any thread

    def freeze(self, timeout_s: float = 20.0) -> int | None:
        """The state stays as it is until the process ends; returns its number of updates.

        Waits for an optimizer step that is under way, no longer than `timeout_s`.

        None: there is no whole state, before it is loaded or after a failure within an update.
        """
        is_first = self._freezing.acquire(timeout=REST_LIMIT_S)
        try:
            self._frozen = self._frozen or self._gate.acquire(timeout=timeout_s)
        finally:
            if is_first:
                self._freezing.release()
        return self.boundary.update if self._frozen and self.boundary else None

    def freeze_after_failure(self) -> int | None:
        """As `freeze`, for the training thread when an exception has ended it."""
        return None if self._in_update else self.freeze()

    def save(self, path: str, as_checkpoint: bool = False) -> int:
        """Write the frozen state; returns its number of updates.

        The file appears whole or not at all. OSError passes through.

        Args:
            as_checkpoint: it is to outlive the machine.
        """
        if not self._frozen or self.boundary is None:
            raise RuntimeError("there is no state to save")
        write = state_file.write if as_checkpoint else state_file.put_by
        write(self._state(self.boundary), path)
        return self.boundary.update

    def _state(self, boundary: Boundary) -> dict[str, Any]:
        assert self._changing is not None
        with self._to_host.reading():
            self.trainer.consolidate_optimizer()
            state: dict[str, Any] = self.trainer.state_dict()
            # --no-save-optimizer-state is for checkpoints
            is_added = "last_optimizer_state" not in state
            if is_added:
                state["last_optimizer_state"] = self.trainer.optimizer.state_dict()
            left_out = exact.collect(self.trainer)
            self._changing.put_back(state, left_out)
            state, left_out = self._to_host.copy((state, left_out), self._changing.instead())
        state["extra_state"].update(
            train_iterator=boundary.iterator,
            val_loss=boundary.val_loss,
            **self.extra(boundary, left_out),
        )
        state["extra_state"][EXTRA][OPTIMIZER_ADDED] = is_added
        if boundary.best is not None:
            state["extra_state"]["best"] = boundary.best
        return state

    def extra(self, boundary: Boundary, left_out: dict[str, Any]) -> dict[str, Any]:
        """What we add to a checkpoint's `extra_state`."""
        return {
            EXTRA: {
                "early_stop": boundary.early_stop,
                "pending": boundary.pending,
                "lr_step": boundary.lr_step,
                "left_out": left_out,
                "training": self.training,
                "record": self.points.state(boundary.update),
                "world_size": self.world_size,
            }
        }


class _Steps:
    """Whether an optimizer has changed parameters since `begin`.

    Of --amp that is known, where torch's scaler decides; any other always has.
    """

    def __init__(self, optimizer: Any) -> None:
        self.were_made = self._always = not isinstance(optimizer, AMPOptimizer)
        if self._always:
            return
        step = optimizer.fp32_optimizer.step

        @functools.wraps(step)
        def told_step(*args: Any, **kwargs: Any) -> Any:
            self.were_made = True
            return step(*args, **kwargs)

        optimizer.fp32_optimizer.step = told_step

    def begin(self) -> None:
        self.were_made = self._always
