"""Errors are told apart by what torch 2.4 to 2.13, NCCL, CUDA and gloo really say."""

import datetime

import pytest
import torch
import torch.distributed as dist
from torch._utils import ExceptionWrapper

from fairseq_ray_plugin.faults import Fault
from fairseq_ray_plugin.training.errors import fault_of

ASYNC = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace \
below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""

ECC = "CUDA error: uncorrectable ECC error encountered"

AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # torch 2.8


def nccl(what, name, last, version="2.20.5", where="../torch/csrc/distributed/c10d/NCCLUtils.hpp"):
    """An error of NCCL as torch words it."""
    return dist.DistBackendError(
        f"NCCL error in: {where}:275, {what}, NCCL version {version}\n{name}\nLast error:\n{last}"
    )


REMOTE = (
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.",
)
SYSTEM = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device "
    "error. ",
)
CUDA = (
    "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "ncclUnhandledCudaError: Call to CUDA function failed.",
)
INTERNAL = ("internal error", "ncclInternalError: Internal check failed.")
INVALID = (
    "invalid usage (run with NCCL_DEBUG=WARN for details)",
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.GPU_MEMORY, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
        (Fault.GPU_MEMORY, RuntimeError("CUDA error: out of memory" + ASYNC)),
        (Fault.GPU_MEMORY, AcceleratorError("CUDA error: out of memory" + ASYNC)),
        (
            Fault.GPU_MEMORY,
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
        ),
        (Fault.GPU_MEMORY, nccl(*CUDA, "Cuda failure 2 'out of memory'")),
        (Fault.GPU_MEMORY, nccl(*CUDA, "Cuda failure 'out of memory'", "2.18.6")),
        (
            Fault.GPU_HARDWARE,
            RuntimeError(ECC + ASYNC),
        ),
        (
            Fault.GPU_HARDWARE,
            AcceleratorError(ECC + ASYNC),
        ),
        (Fault.GPU_HARDWARE, nccl(*CUDA, "Cuda failure 214 'uncorrectable ECC error encountered'")),
        (
            Fault.GPU_HARDWARE,
            RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution"),
        ),
        (
            Fault.GPU_HARDWARE,
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable" + ASYNC),
        ),
        (
            Fault.GPU_HARDWARE,
            RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable" + ASYNC),
        ),
        (
            Fault.GPU_KERNEL,
            RuntimeError("CUDA error: an illegal memory access was encountered" + ASYNC),
        ),
        (
            Fault.GPU_KERNEL,
            AcceleratorError(
                "CUDA error: an illegal memory access was encountered\nSearch for "
                "`cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/"
                "group__CUDART__TYPES.html for more information." + ASYNC
            ),
        ),
        (Fault.GPU_KERNEL, RuntimeError("CUDA error: unspecified launch failure" + ASYNC)),
        (Fault.GPU_KERNEL, RuntimeError("CUDA error: misaligned address" + ASYNC)),
        (Fault.GPU_KERNEL, RuntimeError("CUDA error: unknown error" + ASYNC)),
        (Fault.GPU_KERNEL, nccl(*CUDA, "Cuda failure 999 'unknown error'")),
        (
            Fault.NCCL_REMOTE,
            nccl(*REMOTE, "socketProgress: Connection closed by remote peer node2<42830>"),
        ),
        (
            Fault.NCCL_REMOTE,
            nccl(*REMOTE, "NET/OFI Request 0x7f14 completed with error. RC: 113.", "2.28.8"),
        ),
        (
            Fault.NCCL_REMOTE,  # as it connects to a peer that is gone (nccl#795)
            nccl(*INTERNAL, "Net : Connection closed by remote peer user<50260>", "2.14.3"),
        ),
        (
            Fault.NCCL_REMOTE,
            RuntimeError("NCCL Error 6: remote process exited or there was a network error"),
        ),
        (
            Fault.NCCL_REMOTE,
            dist.DistBackendError(
                "NCCL communicator was aborted on rank 3. Original reason for failure was: [Rank "
                "3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=56693, "
                "OpType=BROADCAST, Timeout(ms)=1800000) ran for 1804371 milliseconds"
            ),
        ),
        (
            Fault.NCCL_SYSTEM,
            nccl(*SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-LeXl (size 9)"),
        ),
        (
            Fault.STORE,
            dist.DistBackendError(
                "[4] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d "
                "key-value store by key '0', but store->get('0') got error: Socket Timeout"
            ),
        ),
        (
            Fault.STORE,
            dist.DistStoreError(
                "Timed out after 61 seconds waiting for clients. 1/2 clients joined."
            ),
        ),
        (
            Fault.STORE,
            dist.DistNetworkError(
                "The client socket has timed out after 60000ms while trying to connect to (h, 1)."
            ),
        ),
        (
            Fault.STORE,
            dist.DistNetworkError(
                "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server "
                "shutdown or crash?"
            ),
        ),
        (Fault.STORE, RuntimeError("Socket Timeout")),
        (
            Fault.GLOO,
            RuntimeError(
                "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
                "[127.0.0.1]:10895"
            ),
        ),
        (
            Fault.GLOO,
            RuntimeError(
                "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error "
                "[192.168.70.92]:25266: Connection reset by peer"
            ),
        ),
        (
            Fault.GLOO,
            RuntimeError(
                "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv "
                "operation to complete"
            ),
        ),
        (Fault.GLOO, RuntimeError("Application timeout caused pair closure")),
        (
            Fault.GLOO,
            RuntimeError(
                "Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:"
                "144] no error"
            ),
        ),
        # what nobody else's end explains
        (
            Fault.OWN,
            nccl(*INVALID, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"),
        ),
        (Fault.OWN, nccl(*CUDA, "Cuda failure 1 'invalid argument'")),
        (Fault.OWN, nccl(*INTERNAL, "")),
        (
            Fault.OWN,
            RuntimeError(
                "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:83] ifa "
                "!= nullptr. Unable to find address for: ib0"
            ),
        ),
        (Fault.OWN, RuntimeError("CUDA error: device-side assert triggered" + ASYNC)),
        (Fault.OWN, RuntimeError("CUDA error: invalid device function" + ASYNC)),
        (Fault.OWN, RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")),
        (Fault.OWN, ConnectionResetError(104, "Connection reset by peer")),
        (Fault.OWN, FloatingPointError("Minimum loss scale reached (0.0001)")),
        (Fault.OWN, KeyError("nccl")),
    ],
)
def test_an_error_is_told_apart(fault, error):
    assert fault is fault_of(error)


def test_what_a_data_set_raises_in_a_loader_process_is_its_own():
    try:
        raise RuntimeError("Connection reset by peer")
    except RuntimeError as error:
        assert Fault.GLOO is fault_of(error)
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(RuntimeError) as raised:
        wrapped.reraise()
    assert Fault.OWN is fault_of(raised.value)


def test_the_loss_of_a_peer_is_told_from_real_errors():
    """Of the store, which is here: gloo's are met in real runs."""
    with pytest.raises(dist.DistError) as raised:
        dist.TCPStore("127.0.0.1", 1, 2, False, timeout=datetime.timedelta(seconds=0.2))
    assert Fault.STORE is fault_of(raised.value)


@pytest.mark.parametrize("fault", Fault)
def test_what_is_a_gpus_is_no_peers(fault):
    assert not (fault.is_gpus and fault.is_peers)
