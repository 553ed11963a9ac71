"""A process that has made all ready, and forks a training process in 20 ms.

Imports cost seconds, so each worker pays them once, here. Started as `python -m
fairseq_ray_plugin.worker.forkserver FD WORKING_DIR PYTHON_PATH...`, where FD is its connection to
the worker: what every training needs is imported before it is known which it will be. It has one
training process at a time: a new one ends the old, and all that it has started (`family.py`).
Another may stand by beside it, until it takes its place.
(multiprocessing's own forkserver would import the main module of its parent, a Ray worker, in every
child, and is silent when a preload fails.)
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Any

from fairseq_ray_plugin.assignment import (
    Assignment,
    Exited,
    Fork,
    Forked,
    Imported,
    Kill,
    NotForked,
    Preload,
    Promote,
    WriteCheckpoint,
)
from fairseq_ray_plugin.protocol import Ready, StandDown, Unfit
from fairseq_ray_plugin.worker import evidence, fresh
from fairseq_ray_plugin.worker.family import Family, describe, lead_group

Task = Assignment | WriteCheckpoint

Run = Callable[[Task, Connection, int | None], object]
"""What a child does: its task, its connection to the worker, and on rank 0 the listening socket at
the generation's store."""

KILL_LIMIT_S = 1.0
"""How long what was killed may take to be gone, where somebody waits for the answer."""

END_LIMIT_S = 10.0
"""And before the next rank begins: a driver may take seconds to give back a GPU."""


def main(
    make_ready: Callable[[Preload, Callable[[], None]], Run],
    import_ahead: Callable[[str, Sequence[str]], object] = lambda *_: None,
) -> None:
    """Serve the worker until it wants no more.

    Args:
        make_ready: imports everything, says so by calling its second argument, and makes what
            ranks inherit; what it raises is the worker's `Unfit`.
        import_ahead: imports what can be before that is known; likewise.
    """
    connection = Connection(int(sys.argv[1]))
    _die_with_parent()  # who imports does not listen
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group, they are the driver's
    try:
        import_ahead(sys.argv[2], sys.argv[3:])
        try:
            preload = connection.recv()
        except EOFError:
            return  # the worker is gone
        run = make_ready(preload, lambda: connection.send(Imported()))
    except BaseException:
        connection.send(Unfit(f"it cannot import what it needs:\n{traceback.format_exc()}"))
        return
    connection.send(Ready())
    _serve(connection, run)


def import_ahead(working_dir: str, python_path: Sequence[str]) -> None:
    """What every training needs is imported.

    Args:
        working_dir, python_path: as in `Preload`.
    """
    gc.disable()  # what is imported stays: looking through it again and again takes half a second
    if os.path.isdir(working_dir):
        os.chdir(working_dir)
    sys.path[:0] = [path for path in python_path if path not in sys.path]
    # torch.cuda.is_available() would otherwise touch CUDA, and no child could use it then
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # Python 3.12 says so at each fork where there are threads: numpy has some, anew in each child
    warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks")
    from fairseq_ray_plugin import compat
    from fairseq_ray_plugin.worker import sparing

    compat.apply()
    sparing.spare_the_compiler()
    import fairseq_cli.train  # noqa: F401

    from fairseq_ray_plugin.worker import rank, writer  # noqa: F401

    gc.freeze()
    gc.enable()


def import_fairseq(preload: Preload) -> Any:
    """All that this training needs is imported; returns its configuration, which is complete."""
    import_ahead(preload.working_dir, preload.python_path)
    import fairseq_cli.train
    from omegaconf import OmegaConf

    if preload.user_dir is not None:
        from fairseq.utils import import_user_module

        import_user_module(argparse.Namespace(user_dir=preload.user_dir))
    cfg = pickle.loads(preload.cfg)
    # fairseq does this as training begins; it takes 40 ms, and fails the second time. It leaves
    # the configuration open, but what comes before it there needs one in which a name that is
    # missing is an error (distributed/utils.py:300 compares a missing base_layers with 0)
    fairseq_cli.train.add_defaults(cfg)
    OmegaConf.set_struct(cfg, True)
    fairseq_cli.train.add_defaults = lambda cfg: OmegaConf.set_struct(cfg, False)
    return cfg


def make_fairseq_ready(preload: Preload, say_imported: Callable[[], None] = lambda: None) -> Run:
    """All is imported, and task and model are made, if ranks can be forked that use CUDA."""
    cfg = import_fairseq(preload)
    say_imported()
    what = f"importing {preload.user_dir}" if preload.user_dir else "what it imports"
    if (why := fresh.why_not_forked(what)) is not None:
        return functools.partial(_run_afresh, preload, why)
    from fairseq_ray_plugin.training import inherited

    made: inherited.Inherited | inherited.NotInherited
    try:
        made = inherited.make(cfg)
        if preload.shared_model:
            inherited.share(made.model, preload.shared_model)
    except inherited.NotInherited as reason:
        made = reason
    if (why := fresh.why_not_forked("making the task or the model")) is not None:
        return functools.partial(_run_afresh, preload, why)
    # else a training process would look through all of this for garbage, 0.3 s at some time or
    # other, and by writing to it make it its own
    gc.collect()
    gc.freeze()
    return functools.partial(_run, cfg, made)


def _run(cfg: Any, made: Any, task: Task, connection: Connection, listener: int | None) -> None:
    from fairseq_ray_plugin.worker import rank, writer

    match task:
        case Assignment():
            rank.train_rank(cfg, made, task, connection, listener)
        case WriteCheckpoint():
            writer.write_checkpoint(task, connection)


def _run_afresh(
    preload: Preload, reason: str, task: Task, connection: Connection, listener: int | None
) -> None:
    from fairseq_ray_plugin.worker import writer

    match task:
        case Assignment():
            fresh.become(preload, reason, task, connection, listener)
        case WriteCheckpoint():  # which uses no GPU
            writer.write_checkpoint(task, connection)


def _serve(connection: Connection, run: Run) -> None:
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written
    family, ooms = Family(woken), 0

    def clear(generation: int) -> bool:
        """Whether nothing is left of ranks that were ended; else it is said what is."""
        left = family.wait(END_LIMIT_S, or_exiting=not _uses_gpu())
        if left:
            connection.send(NotForked(generation, ", ".join(map(describe, left))))
        return not left

    while True:
        readable = wait([connection, woken])
        if woken in readable:
            os.read(woken, 512)
            family.reap()
        for pid, status in family.take_exits():
            how = evidence.end_of(status, evidence.num_oom_kills() > ooms)
            connection.send(Exited(pid, how, evidence.has_crashed(status)))
            family.wait(0)  # what has left its group is killed now, and gone when it counts
        if connection in readable:
            try:
                command = connection.recv()
            except (EOFError, OSError):  # the worker is gone, or wants no more
                command = None
            match command:
                case None:
                    family.end_rank()
                    family.end_standby()
                    family.wait(KILL_LIMIT_S)
                    return
                case Kill():
                    ended = family.end_rank()
                    left = family.wait(KILL_LIMIT_S)
                    if ended:
                        how = ", ".join(map(describe, left)) or "was killed"
                        connection.send(Exited(ended, f"did not answer, and {how}"))
                case StandDown():
                    family.end_standby()
                case Promote(generation):
                    family.end_rank()
                    if clear(generation) and (rank := family.promote()):
                        connection.send(Forked(generation, rank))
                case Fork(assignment, has_listener):
                    link = recv_handle(connection)
                    listener = recv_handle(connection) if has_listener else None
                    family.end_standby()
                    if not assignment.stands_by:
                        family.end_rank()
                    if assignment.stands_by or clear(assignment.generation):
                        ooms = evidence.num_oom_kills()
                        child = os.fork()
                        if child == 0:
                            lead_group()
                            _become(connection, (woken, waker), run, assignment, link, listener)
                        family.add_rank(child, assignment.stands_by)
                        connection.send(Forked(assignment.generation, child))
                    os.close(link)
                    if listener is not None:
                        os.close(listener)
                case WriteCheckpoint():
                    link = recv_handle(connection)
                    writer = os.fork()
                    if writer == 0:
                        _become(connection, (woken, waker), run, command, link, None)
                    os.close(link)
                    family.add_writer(writer)


def _uses_gpu() -> bool:
    """Whether a rank needs the memory of a GPU that the one before it had."""
    return "torch" in sys.modules and bool(sys.modules["torch"].cuda.is_available())


def _become(
    server: Connection,
    pipe: tuple[int, int],
    run: Run,
    task: Task,
    link: int,
    listener: int | None,
) -> None:
    """In the child: never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in pipe:
            os.close(fd)
        server.close()
        behave_as_child()
        run(task, Connection(link), listener)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def behave_as_child() -> None:
    """It ends with its server, and not by a signal to the whole group."""
    # its own children end on SIGTERM as ever: so it is not ignored, nothing follows from it
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    _die_with_parent()


def _die_with_parent() -> None:
    """An orphan would hold the GPU; elsewhere than on Linux the connection's end has to do.

    The parent is the thread that started this process, which lives as long as the worker.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig, pr_set_ptracer, any_process = 1, 0x59616D61, -1
        prctl = ctypes.CDLL(None).prctl
        prctl(pr_set_pdeathsig, signal.SIGKILL)
        # py-spy, a child of the worker, may read the stacks also where only ancestors may
        prctl(pr_set_ptracer, ctypes.c_long(any_process))


if __name__ == "__main__":
    main(make_fairseq_ready, import_ahead)
