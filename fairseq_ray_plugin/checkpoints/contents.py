"""What is in a checkpoint, without loading its tensors and without running anything from it."""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import pickle
from collections.abc import Mapping
from typing import Any

from fairseq_ray_plugin.checkpoints import archive

EXTRA = "elastic"
"""Key of our part of a checkpoint's `extra_state`; stock fairseq passes over it."""

_SHAPED = {
    "torch._utils._rebuild_tensor": 2,
    "torch._utils._rebuild_tensor_v2": 2,
    "torch._utils._rebuild_meta_tensor_no_storage": 1,
}
"""What makes tensors -> which of its arguments is the size."""


class NoCheckpoint(Exception):
    """A whole file, but of something else: training cannot go on from it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Of which moment of which training a state is."""

    updates: int
    epoch: int
    loss: float | None = None
    """Of the validation at that moment, or else the best one so far."""

    world_size: int | None = None
    training: str | None = None
    """Identifies one that was begun anew and has gone on since; None: stock fairseq's."""

    def precedes(self, other: Facts) -> bool:
        """Whether the other state is a later one of the same training."""
        is_same = self.training is not None and self.training == other.training
        return is_same and self.updates < other.updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(Facts):
    size: int
    """Bytes of the file."""

    arch: str | None
    task: str | None
    suffix: str
    """The --checkpoint-suffix of its run."""

    finetuned_from: str | None
    """The --finetune-from-model of its run."""

    shapes: Mapping[str, tuple[int, ...] | None]
    """Of the model's parameters and buffers; None: it cannot be told."""


def summary(path: str) -> Summary:
    """What is in the checkpoint at `path`.

    Raises:
        NoCheckpoint: there is another thing in it.
        sums.Damaged, archive.Opaque: it cannot be looked into.
        OSError: it cannot be read.
    """
    try:
        data = archive.read(path, "data.pkl")
    except KeyError:
        raise NoCheckpoint("it has no data.pkl") from None
    try:
        return _summary(_InertUnpickler(io.BytesIO(data)).load(), os.path.getsize(path))
    except (NoCheckpoint, OSError):
        raise
    except Exception as error:  # whoever wrote it may have put anything anywhere
        raise NoCheckpoint(f"it holds what cannot be looked into ({error!r})") from error


def _summary(state: Any, size: int) -> Summary:
    found = facts(state)
    return Summary(
        **dataclasses.asdict(found),
        **dataclasses.asdict(options_of(state.get("cfg") or state.get("args"))),
        size=size,
        shapes={name: _shape(value) for name, value in dict.items(state["model"])},
    )


def facts(state: Any) -> Facts:
    """Of a checkpoint's state, loaded or looked into.

    Raises:
        NoCheckpoint: it is none.
    """
    try:
        extra, position = state["extra_state"], state["extra_state"]["train_iterator"]
        ours = extra.get(EXTRA) or {}
        loss = extra.get("val_loss")
        if not isinstance(state["model"], dict):
            raise TypeError
        return Facts(
            updates=_checked(int, state["optimizer_history"][-1]["num_updates"]),
            epoch=_checked(int, position["epoch"]),
            loss=_known(float, extra.get("best") if loss is None else loss),
            world_size=_known(int, ours.get("world_size")),
            training=_known(str, ours.get("training")),
        )
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise NoCheckpoint("it is no checkpoint to go on from") from error


@dataclasses.dataclass(frozen=True)
class Options:
    """What of a run's options tells whose a checkpoint is; as in `Summary`."""

    arch: str | None
    task: str | None
    suffix: str
    finetuned_from: str | None


def options_of(cfg: Any) -> Options:
    """Of fairseq's configuration, as it is in a checkpoint: by groups, or all in one as of old."""
    model, task, checkpoint = (_field(cfg, group) for group in ("model", "task", "checkpoint"))
    if checkpoint is None:  # `args`: its "task" is the name
        model = checkpoint = cfg
    arch = _field(model, "arch") or _field(model, "_name")
    name = task if isinstance(task, str) else _field(task, "_name") or _field(task, "task")
    return Options(
        _known(str, arch),
        _known(str, name),
        _known(str, _field(checkpoint, "checkpoint_suffix")) or "",
        _known(str, _field(checkpoint, "finetune_from_model")),
    )


def _field(group: Any, name: str) -> Any:
    """Of a dict, a namespace, or what stands for one."""
    if isinstance(group, Mapping):
        return group.get(name)
    if isinstance(group, Inert):
        return group.state.get(name) if isinstance(group.state, dict) else None
    return getattr(group, name, None)


def _known(kind: type, value: Any) -> Any:
    """`value` where it is what it ought to be; None: it is not known."""
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else None


def _checked(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, Inert):
        return None
    if value.origin == "torch._utils._rebuild_parameter" and value.args:
        return _shape(value.args[0])
    place = _SHAPED.get(value.origin)
    size = value.args[place] if place is not None and len(value.args) > place else None
    if isinstance(size, tuple) and all(type(length) is int for length in size):
        return size
    return None


class Inert:
    """Stands for an object of any class, and for what any function returns; does nothing."""

    origin = ""
    """The class or function."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    args: tuple[Any, ...]
    state: Any
    """What would have been its attributes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    """Builds plain values as they are, and whatever has a class or a function in it as `Inert`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        origin = f"{module}.{name}"
        if origin not in self._inert:
            self._inert[origin] = type("Inert", (Inert,), {"origin": origin})
        return self._inert[origin]

    def persistent_load(self, pid: Any) -> Any:
        return Inert()
