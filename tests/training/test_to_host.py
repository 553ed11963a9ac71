"""A state comes to the host by pages that are there, and as it lay on the GPU.

On CPUs the same code runs, without a stream and without waiting.
"""

import pytest
import torch
import trainers

from fairseq_ray_plugin.training.to_host import Page, ToHost, fetch, key_of


def pages(size):
    return [Page(torch.zeros(size, dtype=torch.uint8)) for _ in range(2)]


TENSORS = {
    "plain": torch.randn(50, 7),
    "transposed": torch.randn(50, 7).t(),
    "cut out of another": torch.randn(50, 7)[3:9, 2:5],
    "spread": torch.randn(7, 1).expand(7, 5),
    "number": torch.tensor(3),
    "nothing": torch.empty(0, 3),
    "truths": torch.rand(99) > 0.5,
    "halves": torch.randn(33).half(),
    "images": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("size", [8, 64, 1 << 20])
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_fetched_is_a_copy_with_the_same_values(name, size):
    tensor = TENSORS[name]
    fetched = fetch(tensor, pages(size))
    assert torch.equal(tensor, fetched) and tensor.dtype == fetched.dtype
    assert tensor.stride() == fetched.stride() or not tensor.numel()
    if tensor.numel():
        assert tensor.data_ptr() != fetched.data_ptr()


def test_a_state_on_the_cpu_is_not_copied_but_for_16_bits_and_what_has_changed():
    tensor, halves, changed = torch.randn(5), torch.randn(5).half(), torch.zeros(5)
    to_host = ToHost()
    to_host.mark()
    with to_host.reading():
        state = to_host.copy(
            {"a": [tensor], "b": halves, "same": halves, "c": changed.view(5)},
            {key_of(changed): torch.ones(5)},
        )
    assert state["a"][0] is tensor
    assert torch.float32 == state["b"].dtype and torch.equal(halves.float(), state["b"])
    assert state["same"] is state["b"]
    assert 5 == state["c"].sum()


@pytest.mark.parametrize("device", [d for d in trainers.DEVICES if d != "cpu"])
def test_what_is_copied_waits_for_the_boundary_and_takes_no_memory_of_the_gpu(device):
    to_host, tensor = ToHost(), torch.zeros(1 << 22, device=device)
    torch.cuda._sleep(10**8)
    tensor += 1
    to_host.mark()
    torch.cuda._sleep(10**10)  # a collective whose other end is dead
    tensor += 1
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    with to_host.reading():
        state = to_host.copy({"x": tensor[: 1 << 20].view(1024, 1024).t(), "h": tensor}, {})
    assert before == (torch.cuda.memory_reserved(), torch.cuda.memory_allocated())
    assert not torch.cuda.current_stream().query(), "it did not wait for what comes after"
    assert 1 << 20 == state["x"].sum()
