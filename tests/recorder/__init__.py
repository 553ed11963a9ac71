"""A user's own --user-dir: writes down which samples every update ate, and fails on request.

FAIRSEQ_RECORD names a folder; each training process appends two lines per update to a file there,
and one when functions are called that wait for its end.
FAIRSEQ_FAULTS is a JSON list of {"rank", "update", "where", "what", "always"}: at `where` in the
making of update number `update` on rank `rank`, once (or always), `what` happens: the name of a
signal that the process sends itself, "raise", "hang" (a deadlock), or to a parameter "nan" or
"drift" (its values change a little). A file `fired_N` shows that fault N happened. Faults at the
same update happen together, or the first would stop the other ranks before theirs.
FAIRSEQ_PAUSE: seconds that every update takes longer, so that there is time to disturb a run on
a machine of any speed; until a file `hurry` is in the folder.
FAIRSEQ_PACE: seconds that every mini-batch takes longer, as on a device that computes while the CPU
waits: updates then scale with the ranks, however few cores there are; until `hurry`, too.
"""

import atexit
import functools
import json
import os
import signal
import threading
import time

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

FOLDER = os.environ.get("FAIRSEQ_RECORD")
PAUSE = float(os.environ.get("FAIRSEQ_PAUSE", "0"))
PACE = float(os.environ.get("FAIRSEQ_PACE", "0"))
FAULTS = json.loads(os.environ.get("FAIRSEQ_FAULTS", "[]"))


def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def fail_if_asked(where, update, trainer=None):
    for number, fault in enumerate(FAULTS):
        marker = os.path.join(FOLDER, f"fired_{number}")
        if (fault["rank"], fault["update"], fault["where"]) == (
            rank_and_world()[0],
            update,
            where,
        ) and (fault.get("always") or not os.path.exists(marker)):
            with open(marker, "a") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
            victims = [
                (wait_for(other), same["what"])
                for other, same in enumerate(FAULTS)
                if same["update"] == update
            ]
            match fault["what"]:
                case "raise":
                    raise ValueError(f"the model is broken at update {update}")
                case "hang":
                    threading.Event().wait()
                case "nan":
                    next(trainer.model.parameters()).data.fill_(float("nan"))
                case "drift":
                    next(trainer.model.parameters()).data[0].add_(1e-3)
                case name:
                    # whoever comes first, for all: the other would be told to hold meanwhile
                    for pid, what in sorted(victims, key=lambda victim: victim[0] == os.getpid()):
                        if what == name:
                            os.kill(pid, signal.Signals[name])


def wait_for(number):
    """The fault is about to happen; returns the process that it happens to."""
    while True:
        try:
            with open(os.path.join(FOLDER, f"fired_{number}")) as file:
                if line := file.read():
                    return int(line.split()[-1])
        except FileNotFoundError:
            pass
        time.sleep(0.001)


def wrap(owner, name, before):
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        before(*args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def write(line):
    with open(os.path.join(FOLDER, f"{os.getpid()}.jsonl"), "a") as file:
        file.write(json.dumps(line) + "\n")


def record(original):
    @functools.wraps(original)
    def train_step(trainer, samples, *args, **kwargs):
        coming = trainer.get_num_updates() + 1
        for place in PLACES:
            hook(trainer, place)
        rank, world = rank_and_world()
        ids = [i for s in samples if torch.is_tensor(s and s.get("id")) for i in s["id"].tolist()]
        # ranks of one generation meet at one address, and at no other generation's
        group = trainer.cfg.distributed_training.distributed_init_method or os.getpid()
        line = {"rank": rank, "world": world, "pid": os.getpid(), "group": group, "ids": ids}
        write(line | {"kind": "begun", "update": coming, "time": time.time()})
        fail_if_asked("begin", coming)
        pause_s = PAUSE + PACE * sum(bool(sample) for sample in samples)
        if pause_s and not os.path.exists(os.path.join(FOLDER, "hurry")):
            time.sleep(pause_s)
        result = original(trainer, samples, *args, **kwargs)
        line |= {"kind": "done", "update": trainer.get_num_updates(), "time": time.time()}
        write(line | {"loss": (result or {}).get("loss")})
        return result

    return train_step


def hook(trainer, place):
    """Faults inside an update: before what stands in `PLACES`."""
    if not FAULTS or getattr(trainer, f"hooked_{place}", False):
        return
    setattr(trainer, f"hooked_{place}", True)
    owner, name = PLACES[place]
    wrap(
        getattr(trainer, owner),
        name,
        lambda *args: fail_if_asked(place, trainer.get_num_updates() + 1, trainer),
    )


PLACES = {
    "forward": ("task", "train_step"),
    "all_reduce": ("optimizer", "all_reduce_grads"),
    # half-way: the parameters are about to change, the count of updates is not
    "optimizer": ("optimizer", "step"),
}


if FOLDER:
    os.makedirs(FOLDER, exist_ok=True)
    atexit.register(lambda: write({"kind": "exit", "pid": os.getpid(), "time": time.time()}))
    Trainer.train_step = record(Trainer.train_step)
    wrap(
        Trainer,
        "valid_step",
        lambda trainer, *args: fail_if_asked("validate", trainer.get_num_updates()),
    )
    wrap(
        Trainer,
        "get_valid_iterator",
        lambda trainer, *args: write(
            {
                "kind": "validation_data",
                "pid": os.getpid(),
                "update": trainer.get_num_updates(),
                "time": time.time(),
            }
        ),
    )
    wrap(
        checkpoint_utils,
        "save_checkpoint",
        lambda cfg, trainer, *args: fail_if_asked(
            "checkpoint" if isinstance(trainer, Trainer) else "writing", trainer.get_num_updates()
        ),
    )
