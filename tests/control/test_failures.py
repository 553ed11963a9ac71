"""What is said to the user beside a failure."""

import pytest

from fairseq_ray_plugin.control import failures
from fairseq_ray_plugin.control.failures import Cause, Failure
from fairseq_ray_plugin.faults import Error, Fault


@pytest.mark.parametrize(
    ("kind", "message", "fault", "advice"),
    [
        ("torch.OutOfMemoryError", "CUDA", Fault.GPU_MEMORY, "the GPU's memory is too small"),
        ("torch.AcceleratorError", "ECC", Fault.GPU_HARDWARE, "has to be reset"),
        ("DistBackendError", "ncclSystemError", Fault.NCCL_SYSTEM, "a full /dev/shm"),
        ("IndexError", "index out of range in self", Fault.OWN, "its dictionary does not"),
        ("ValueError", "another thing", Fault.OWN, None),
    ],
)
def test_what_to_change_is_said_where_the_failure_tells(kind, message, fault, advice):
    text = f"rank 0 of 2 raised {kind}: {message}"
    report = Failure(Cause.FAILED, text, error=Error(kind, message, fault=fault)).report()
    if advice is None:
        assert text == report and "" == failures.advice(report)
    else:
        assert advice in report.splitlines()[-1]
