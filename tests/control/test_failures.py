"""What is said to the user beside a failure."""

import pytest

from fairseq_ray_plugin.control import failures
from fairseq_ray_plugin.control.failures import Cause, Failure
from fairseq_ray_plugin.protocol import Error


@pytest.mark.parametrize(
    ("kind", "message", "advice"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried", "the GPU's memory is too small"),
        ("IndexError", "index out of range in self", "numbers that its dictionary does not"),
        ("ValueError", "another thing", None),
    ],
)
def test_what_to_change_is_said_where_the_failure_tells(kind, message, advice):
    text = f"rank 0 of 2 raised {kind}: {message}"
    report = Failure(Cause.FAILED, text, error=Error(kind, message)).report()
    if advice is None:
        assert text == report and "" == failures.advice(report)
    else:
        assert advice in report.splitlines()[-1]
