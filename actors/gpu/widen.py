"""Weights of few bits as numbers that matrix units and float32 arithmetic take, exactly."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def is_by_bits(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """What `widened` takes as BY_BITS, for weights and the dtype that they are to have."""
    return values.dtype == torch.int8 and dtype == torch.bfloat16 and values.device.type == "cuda"


@triton.jit
def widened(values, dtype: tl.constexpr, BY_BITS: tl.constexpr):
    """Within a kernel: values in dtype, or in another that holds them.

    BY_BITS, int8 to bfloat16: the processor converts whole numbers at a quarter of the rate at which it does anything else. So
    the low seven bits are put into the mantissa of 128 and the sign's into that of another 128: the two differ by the value.
    """
    if BY_BITS:
        wide = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, left, right, minus;
            mov.b32 minus, 0xbf80bf80;
            prmt.b32 low, $2, 0, 0x4140;
            prmt.b32 high, $2, 0, 0x4342;
            lop3.b32 left, low, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 right, low, 0x00800080, 0x43004300, 0xea;
            fma.rn.bf16x2 $0, right, minus, left;
            lop3.b32 left, high, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 right, high, 0x00800080, 0x43004300, 0xea;
            fma.rn.bf16x2 $1, right, minus, left;
            }""",
            "=r,=r,r",
            [values],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        wide = values.to(dtype)
    return wide
