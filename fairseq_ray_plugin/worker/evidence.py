"""What is found out about a process that hangs or died."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

STACKS_S = 8.0
"""How long the stacks of a training process may take."""


async def stacks(pid: int) -> str:
    """What every thread of a process is doing; also of one that is stopped or deadlocked."""
    # "nonblocking": the process is not paused, so one that is stopped is read all the same
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    program = beside if os.path.exists(beside) else "py-spy"
    command = (program, "dump", "--nonblocking", "--pid", str(pid))
    try:
        dump = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return f"no stacks: {error}"
    try:
        output, _ = await asyncio.wait_for(dump.communicate(), STACKS_S)
    except asyncio.TimeoutError:  # another one than Python's own on 3.10
        dump.kill()
        return f"no stacks in {STACKS_S:.0f} s"
    return output.decode(errors="replace").strip()


def num_oom_kills() -> int:
    """Processes that this machine's kernel has killed for lack of memory since it started."""
    try:
        with open("/proc/vmstat") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0


CRASHES = frozenset(
    [signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP]
)
"""What a process is killed by for something that it did itself."""


def has_crashed(status: int) -> bool:
    """Whether a process ended by its own doing, from its wait status."""
    return -os.waitstatus_to_exitcode(status) in CRASHES


def end_of(status: int, out_of_memory: bool = False) -> str:
    """What became of a process, for people, from its wait status.

    Args:
        out_of_memory: the kernel has killed a process for lack of memory while it ran.
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with code {code}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-code, f"signal {-code}")  # not all have one
    by_kernel = name == "SIGKILL" and out_of_memory
    return f"was killed by {name}" + (" by the kernel, for lack of memory" if by_kernel else "")
