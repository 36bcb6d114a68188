"""Compares the kernel for a sum and its norm with torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.checkpoint.weights import Norm
from actors.gpu.add_norm import add_norm

pytestmark = MARKS


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(("num_rows", "hidden"), [(1, 4096), (5, 72)])
def test_it_agrees_with_torch(num_rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, added = (torch.randn(num_rows, hidden).to(dtype).to(DEVICE) * 2 + 1 for _ in range(2))
    norm = Norm(*(torch.randn(hidden).to(dtype).to(DEVICE) for _ in range(2)))
    total, normed = add_norm(x, added, norm, 1e-5)
    assert torch.equal(total, x + added)
    expected = F.layer_norm(x + added, (hidden,), norm.weight, norm.bias, 1e-5)
    assert (normed - expected).float().norm() <= (
        1e-6 if dtype == torch.float32 else 1e-3
    ) * expected.float().norm()
