"""Computes a residual sum and its LayerNorm in one kernel.

Legend: T tokens, H hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from actors.checkpoint.weights import Norm


def add_norm(
    x: torch.Tensor, added: torch.Tensor, norm: Norm, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + added and its LayerNorm, each [T, H] in x's dtype; the sum is rounded before the norm."""
    x, added = x.contiguous(), added.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    num_rows, hidden = x.shape
    size = triton.next_power_of_2(hidden)
    _add_norm[(num_rows,)](
        x,
        added,
        norm.weight,
        norm.bias,
        total,
        normed,
        eps,
        HIDDEN=hidden,
        SIZE=size,
        num_warps=8,
    )
    return total, normed


@triton.jit
def _add_norm(
    x,
    added,
    weight,
    bias,
    total,
    normed,
    eps,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    normalised(x, added, weight, bias, total, normed, row, eps, HIDDEN, SIZE)


@triton.jit
def normalised(x, added, weight, bias, total, normed, row, eps, HIDDEN: tl.constexpr, SIZE: tl.constexpr):
    """Compute and store one row within a kernel; return its norm [SIZE], rounded as it is stored."""
    at = tl.arange(0, SIZE)
    mask = at < HIDDEN
    place = row * HIDDEN + at
    left = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(added + place, mask=mask, other=0.0).to(tl.float32)
    rounded = (left + right).to(total.dtype.element_ty)
    tl.store(total + place, rounded, mask=mask)
    value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=0) / HIDDEN
    centred = tl.where(mask, value - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / HIDDEN + eps)
    gain = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    result = (centred * scale * gain + shift).to(normed.dtype.element_ty)
    tl.store(normed + place, result, mask=mask)
    return result
