"""y = x @ weight.T + bias, by whatever product reads weights fastest on the device; chosen once, at load.

CPU, bfloat16 or float32    oneDNN's packed layout: it reads weights up to twice as fast as `F.linear` at decode
                            batch sizes (README, benchmarks)
otherwise                   F.linear
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""x [rows, in] -> y [rows, out] in x's dtype. At least one row."""

_MIN_PACKED_ROWS = 4
"""oneDNN takes longer for one to three rows than for four; and as it rounds a single row differently, results do not
depend on how few rows a step has."""


def make_product(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """The product with weight [out, in] and bias [out]. On a CPU it holds a copy of its own; drop the original."""
    if weight.device.type != "cpu":
        return _plain(weight.contiguous(), bias)
    if weight.dtype in (torch.bfloat16, torch.float32) and torch._C._has_mkldnn:
        return _packed(torch.ops.mkldnn._reorder_linear_weight(weight, None), bias)
    return _plain(weight.clone(), bias)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    linear_pointwise = torch.ops.mkldnn._linear_pointwise

    def product(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        if num_rows < _MIN_PACKED_ROWS:
            x = F.pad(x, (0, 0, 0, _MIN_PACKED_ROWS - num_rows))
        out: torch.Tensor = linear_pointwise(x, weight, bias, "none", [], "")
        return out[:num_rows]

    return product
