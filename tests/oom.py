"""A process runs out of memory, and the kernel kills it: that one, and no other.

It is moved to a memory cgroup of its own, which has next to none: what the process has it keeps,
and the next page it asks for is too much. Needs root and the memory controller of cgroups 1 or 2.
"""

import contextlib
import uuid
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 1 << 20
"""Bytes; those that the process has already are not counted."""


@contextlib.contextmanager
def too_little_memory(pid):
    """The process is killed as soon as it needs more memory; it must have ended at the end.

    Raises:
        OSError: this machine does not let us; before anything has happened to the process.
    """
    folder, limits = _cgroup()
    folder.mkdir()
    try:
        for name, limit in limits.items():
            (folder / name).write_text(str(limit))
        (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        folder.rmdir()


def _cgroup():
    """A folder for the cgroup, and what to write in it; swap must not help."""
    name = f"frp{uuid.uuid4().hex[:6]}"
    if (CGROUPS / "memory").is_dir():
        limits = {"memory.limit_in_bytes": LIMIT}
        if (CGROUPS / "memory/memory.memsw.limit_in_bytes").exists():
            limits["memory.memsw.limit_in_bytes"] = LIMIT
        return CGROUPS / "memory" / name, limits
    (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    return CGROUPS / name, {"memory.max": LIMIT, "memory.swap.max": 0}
