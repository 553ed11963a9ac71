"""Which `Fault` an exception is: by its type, and by what CUDA, NCCL and gloo say in it.

torch has one type for all of NCCL's errors, and before 2.8 none for CUDA's, so their own words
count: NCCL's and CUDA's names for their errors, which stay from version to version.
"""

from __future__ import annotations

import re

import torch
import torch.distributed as dist

from fairseq_ray_plugin.faults import Fault

_IN_LOADER = re.compile(r"Caught \w+ in (DataLoader worker|pin memory thread)")
"""What a user's data set has raised, in a process that has neither GPU nor peers."""

_GPU_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|Cuda failure( 2)? 'out of memory'"
    r"|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
)
_GPU_HARDWARE = re.compile(
    r"uncorrectable ECC error|uncorrectable NVLink error|NVLink error was detected"
    r"|memory error was contained|GPU (is lost|has fallen off the bus)|\bXid\b"
    r"|hardware stack error|CUDA-capable device(s|\(s\))? (is/)?are busy or unavailable",
    re.IGNORECASE,
)
_GPU_KERNEL = re.compile(
    r"illegal memory access|misaligned address|illegal instruction was encountered"
    r"|invalid program counter|operation not supported on global/shared address space"
    r"|unspecified launch failure|launch timed out and was terminated"
    r"|(CUDA error: |Cuda failure( 999)? ')unknown error"
    r"|CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
)
_NCCL_REMOTE = re.compile(
    r"ncclRemoteError|remote process exited or there was a network error"
    r"|NCCL communicator was aborted|Watchdog caught collective operation timeout"
    # NCCL calls it its own error when it meets a peer that is gone as it connects (nccl#795)
    r"|ncclInternalError[\s\S]*(connection (closed|reset|refused)|broken pipe)",
    re.IGNORECASE,
)
_NCCL_SYSTEM = re.compile(r"ncclSystemError|unhandled system error")
_NCCL = re.compile(r"nccl\w+Error|NCCL error|ncclInvalid(Usage|Argument)", re.IGNORECASE)
_STORE = re.compile(r"c10d key-value store|TCPStore|socket timeout", re.IGNORECASE)
_GLOO = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo connect\w+ failed"
    r"|gloo/transport[\s\S]*(timed out|timeout)|application timeout",
    re.IGNORECASE,
)
"""Of a plain RuntimeError, as which gloo's errors come."""


def fault_of(error: BaseException) -> Fault:
    """What kind of error it is; `Fault.OWN` where nothing else is known of it."""
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return Fault.GPU_MEMORY
    if not isinstance(error, RuntimeError) or _IN_LOADER.match(text):
        return Fault.OWN
    # a GPU's error comes first: NCCL only passes it on
    for pattern, fault in (
        (_GPU_MEMORY, Fault.GPU_MEMORY),
        (_GPU_HARDWARE, Fault.GPU_HARDWARE),
        (_GPU_KERNEL, Fault.GPU_KERNEL),
        (_NCCL_REMOTE, Fault.NCCL_REMOTE),
        (_NCCL_SYSTEM, Fault.NCCL_SYSTEM),
        (_STORE, Fault.STORE),
        (_NCCL, Fault.OWN),  # as "Duplicate GPU": a wrong use of it, which stays wrong
        (_GLOO, Fault.GLOO),
    ):
        if pattern.search(text):
            return fault
    return Fault.STORE if isinstance(error, dist.DistError) else Fault.OWN
