"""Compares the product of matrix and vector with torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.gpu.linear import one_row

pytestmark = MARKS
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)


@DTYPES
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 1024), (7, 3000), (1, 40)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_one_row(num_outputs: int, num_inputs: int, has_bias: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(1, num_inputs).to(dtype), torch.randn(num_outputs, num_inputs).to(dtype)
    bias = torch.randn(num_outputs).to(dtype) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = one_row(x.to(DEVICE), weight.to(DEVICE), None if bias is None else bias.to(DEVICE))
    assert y.dtype == dtype
    # The terms of a single output may cancel.
    size = expected.norm() + x.double().norm() * weight.double().norm() / num_inputs**0.5
    assert (y.cpu() - expected).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * size
