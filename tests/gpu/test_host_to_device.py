"""Tests copies to a device while earlier copies are still in progress."""

from __future__ import annotations

import pytest
import torch

from actors.gpu.host_to_device import to_device

CUDA = torch.device("cuda")


def test_on_a_cpu_it_is_the_tensor_itself() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_copy_is_overwritten_by_a_later_one() -> None:
    """Copy one changing tensor many times, in all sizes, while the device computes a long product."""
    busy = torch.randn(4096, 4096, device=CUDA)
    for _ in range(20):
        busy = busy @ busy / 100
    tensor = torch.zeros(50_000, dtype=torch.int64)
    copies = []
    for number in range(40):
        tensor.fill_(number)
        part = tensor[: 50_000 if number % 3 else 7].view(1, -1)
        copies.append(to_device(part, CUDA))
    for number, copy in enumerate(copies):
        assert copy.shape == (1, 50_000 if number % 3 else 7) and bool((copy == number).all())
