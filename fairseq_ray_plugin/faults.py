"""What kind of error a rank has met, told apart where it is raised, before it is text."""

from __future__ import annotations

import dataclasses
import enum


class Fault(enum.Enum):
    """Whose an error may be."""

    OWN = "of the training itself, its data or its options"
    GPU_MEMORY = "the GPU's memory is full"
    GPU_HARDWARE = "the GPU is broken, or says so (ECC, NVLink, lost from the bus)"
    GPU_KERNEL = "something failed on the GPU (illegal address, launch failure)"
    NCCL_REMOTE = "NCCL has lost another rank"
    NCCL_SYSTEM = "a system call failed in NCCL, which another rank's end may be the cause of"
    GLOO = "gloo has lost another rank"
    STORE = "the store at which ranks meet is out of reach"

    @property
    def is_peers(self) -> bool:
        """It only says that another rank went away, or cannot be told from that."""
        return self in (Fault.NCCL_REMOTE, Fault.NCCL_SYSTEM, Fault.GLOO, Fault.STORE)

    @property
    def is_gpus(self) -> bool:
        """A GPU on which it comes back is of no use, whatever the training does."""
        return self in (Fault.GPU_HARDWARE, Fault.GPU_KERNEL)


@dataclasses.dataclass(frozen=True)
class Error:
    """An exception, as it travels."""

    kind: str
    """Its type's name."""

    message: str
    traceback: str = ""
    """Of a cause alone, not of the effect of another rank's failure."""

    fault: Fault = Fault.OWN
