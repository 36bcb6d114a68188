"""Multiplies a matrix by a vector: y = w x + bias for a single row, as fast as w can be read.

Legend: N outputs, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# These sizes are among the fastest on an H200 for all matrices of Phi-3.5-MoE.
_OUTPUTS, _INPUTS, _WARPS = 2, 1024, 8


def one_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return y [1, N] in x's dtype for x [1, K], weight [N, K] contiguous and bias [N].

    The sum is computed in float32 and rounded once.
    """
    num_outputs, num_inputs = weight.shape
    y = torch.empty((1, num_outputs), dtype=x.dtype, device=x.device)
    _one_row[(triton.cdiv(num_outputs, _OUTPUTS),)](
        x.contiguous(),
        weight,
        bias,
        y,
        num_outputs,
        NUM_INPUTS=num_inputs,
        HAS_BIAS=bias is not None,
        OUTPUTS=_OUTPUTS,
        INPUTS=_INPUTS,
        num_warps=_WARPS,
    )
    return y


@triton.jit
def _one_row(
    x,
    weight,
    bias,
    y,
    num_outputs,
    NUM_INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = output < num_outputs
    w_at = weight + output.to(tl.int64)[:, None] * NUM_INPUTS
    parts = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = at < NUM_INPUTS
        mask = is_output[:, None] & is_input[None, :]
        w = tl.load(w_at + at[None, :], mask=mask, other=0.0).to(tl.float32)
        parts += w * tl.load(x + at, mask=is_input, other=0.0).to(tl.float32)[None, :]
    total = tl.sum(parts, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(y + output, total.to(y.dtype.element_ty), mask=is_output)
