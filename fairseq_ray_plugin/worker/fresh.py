"""A rank in a new interpreter, where CUDA was started before it could be forked.

Some imports start CUDA (xformers, TransformerEngine, a user's own; with MIG a mere count of the
GPUs), and no process that is forked afterwards can use it. There the forked process becomes a new
interpreter, by exec: its server sees the same child, by the same pid, and ends it in the same way.
It imports everything again, which takes as long as the server's own imports.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn

from fairseq_ray_plugin.assignment import Assignment, Go, Holding, Preload
from fairseq_ray_plugin.protocol import Held, Hold

LOOK_S = 0.05
"""How often is looked whether everything is imported."""


def why_not_forked(what: str) -> str | None:
    """Why no process that is forked from this one could use CUDA; None: it could.

    Args:
        what: this process has done last.
    """
    import torch

    if not torch.cuda.is_initialized():
        child = os.fork()  # what torch knows of it is told to children alone
        if child == 0:
            os._exit(int(torch.cuda._is_in_bad_fork()))
        _, status = os.waitpid(child, 0)
        # fairseq's import counts GPUs: torch that is built for CUDA starts it where there are none
        if status == 0 or torch.cuda.device_count() == 0:
            return None
    return (
        f"{what} starts CUDA, which no forked process could use then: each rank is a new "
        "interpreter, which imports everything again"
    )


def become(
    preload: Preload,
    reason: str,
    assignment: Assignment,
    connection: Connection,
    listener: int | None,
) -> NoReturn:
    """In a forked process: it is a new interpreter, and trains there as `train_rank` says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # alone of all handlers this outlives exec
    with tempfile.TemporaryFile() as file:
        pickle.dump((preload, reason, assignment), file)
        file.seek(0)
        fds = [file.fileno(), connection.fileno(), -1 if listener is None else listener]
        for fd in fds:
            if fd >= 0:
                os.set_inheritable(fd, True)
        # Python looks for modules in the folder that it begins in: no other than the server's
        os.chdir(_folder_of_package())
        name = "fairseq_ray_plugin.worker.fresh"
        os.execv(sys.executable, [sys.executable, "-m", name, *map(str, fds)])


def _folder_of_package() -> str:
    import fairseq_ray_plugin

    return os.path.dirname(os.path.dirname(os.path.abspath(fairseq_ray_plugin.__file__)))


def answer(connection: Connection, is_imported: threading.Event, told: list[Go]) -> None:
    """For the worker, until everything is imported; or for ever, once the rank was told to hold.

    There is no state yet; but who says nothing is taken for hung, and killed.

    Args:
        told: gets what a rank that stands by is told meanwhile.
    """
    is_held = False
    while is_held or not is_imported.is_set():
        try:
            order = connection.recv() if connection.poll(LOOK_S) else None
            match order:
                case Hold(generation):
                    is_held = True
                    connection.send(Holding())
                    connection.send(Held(None, generation))
                case Go():
                    told.append(order)
        except (EOFError, OSError):
            os._exit(1)  # the worker is gone


def main() -> None:
    """What `become` has started."""
    try:
        told, link, listener = map(int, sys.argv[1:])
        with open(told, "rb") as file:
            preload, reason, assignment = pickle.load(file)
        from fairseq_ray_plugin.worker import forkserver

        forkserver.behave_as_child()
        connection = Connection(link)
        is_imported = threading.Event()
        told_to_go: list[Go] = []
        waiting = (connection, is_imported, told_to_go)
        answers = threading.Thread(target=answer, args=waiting, daemon=True)
        answers.start()
        cfg = forkserver.import_fairseq(preload)
        is_imported.set()
        answers.join()
        for go in told_to_go:
            assignment = dataclasses.replace(
                assignment,
                stands_by=False,
                restore=go.restore,
                snapshot_updates=go.snapshot_updates,
            )
        from fairseq_ray_plugin.training.inherited import NotInherited
        from fairseq_ray_plugin.worker import rank

        rank.train_rank(
            cfg, NotInherited(reason), assignment, connection, None if listener < 0 else listener
        )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
