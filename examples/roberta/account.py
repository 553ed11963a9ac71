"""What a demonstration run went through, from its journal and its logged losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

# The loss of one update is noisy.
LOSSES_AVERAGED = 10


@dataclass(frozen=True)
class Account:
    """The account of one run; printed, it is a short report."""

    events: Sequence[dict]
    """The lines of elastic.jsonl."""
    losses: Sequence[tuple[int, float]]
    """(update, loss) in the order of logging."""
    killed_at: float | None
    """When a training process was killed, in epoch seconds."""
    exit_status: int
    """Of fairseq-ray-train."""
    wall_s: float
    """Of the whole command, starting Ray included."""

    def stop(self) -> dict | None:
        """The event of training stopping because of the kill."""
        if self.killed_at is None:
            return None
        return self._first("stopped", self.killed_at)

    def back(self) -> dict | None:
        """The event of the first update after that stop."""
        stop = self.stop()
        return stop and self._first("advanced", stop["time"])

    def updates_redone(self) -> int:
        return len(self.losses) - len({update for update, _ in self.losses})

    def loss_first_and_last(self) -> tuple[float, float] | None:
        if not self.losses:
            return None
        values = [loss for _, loss in self.losses]
        return mean(values[:LOSSES_AVERAGED]), mean(values[-LOSSES_AVERAGED:])

    def problems(self) -> list[str]:
        """Why the demonstration did not show what it should; empty if it did."""
        loss = self.loss_first_and_last()
        checks = {
            "training did not finish": self.exit_status == 0
            and any(event["kind"] == "finished" for event in self.events),
            "no training process could be killed": self.killed_at is not None,
            "the killed process was not noticed": self.killed_at is None or self.stop() is not None,
            "training did not go on after the kill": self.stop() is None or self.back() is not None,
            "the loss did not fall": loss is not None and loss[1] < loss[0],
        }
        return [problem for problem, passed in checks.items() if not passed]

    def __str__(self) -> str:
        rows = [
            ("updates", f"{max((u for u, _ in self.losses), default=0)} in {self.wall_s:.0f} s"),
            ("workers", " -> ".join(map(str, self._world_sizes())) or "none"),
        ]
        if stop := self.stop():
            rows.append(("failure", f"{stop['cause']}, at update {stop['update']}"))
        if back := self.back():
            rows.append(("time lost", f"{back['time'] - stop['time']:.1f} s"))
            rows.append(("updates redone", str(self.updates_redone())))
        if loss := self.loss_first_and_last():
            rows.append(("loss", f"{loss[0]:.2f} -> {loss[1]:.2f}"))
        rows.append(("result", "; ".join(self.problems()) or "the failure was survived"))
        return "\n".join(f"{name:16}{value}" for name, value in rows)

    def _first(self, kind: str, since: float) -> dict | None:
        found = (event for event in self.events if event["kind"] == kind)
        return next((event for event in found if event["time"] >= since), None)

    def _world_sizes(self) -> list[int]:
        return [event["world_size"] for event in self.events if event["kind"] == "started"]
