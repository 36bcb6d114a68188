"""y = x @ weight.T + bias, by whatever product reads weights fastest on the device; chosen once, at load.

On a CPU oneDNN's packed layout reads weights about twice as fast as `F.linear` at decode batch sizes (figures in
README.md), so bf16 and float32 weights are packed there and the original is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""x [..., in] -> y [..., out] in x's dtype. At least one row."""


def make_product(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """The product with weight [out, in] and bias [out]. On a CPU it holds a packed copy; drop the original."""
    if weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32) and _has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        linear_pointwise = torch.ops.mkldnn._linear_pointwise
        return lambda x: linear_pointwise(x, packed, bias, "none", [], "")
    owned = weight.contiguous()
    return lambda x: F.linear(x, owned, bias)


def _has_onednn() -> bool:
    return bool(torch._C._has_mkldnn)
