"""Merges the results of two attentions over different keys into the attention over all of them.

Legend: T queries, A heads, D head dimension.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def merge(
    left: torch.Tensor, left_sums: torch.Tensor, right: torch.Tensor, right_sums: torch.Tensor
) -> torch.Tensor:
    """Return the merged result [T, A * D] of two results [T, A, D], both contiguous.

    `left_sums` and `right_sums` [A, T] float32 are the logarithms of the sums of exponentials that divided
    the results.
    """
    num_queries, num_heads, head_dim = left.shape
    result = torch.empty((num_queries, num_heads * head_dim), dtype=left.dtype, device=left.device)
    _merge_two[(num_queries, num_heads)](
        left,
        left_sums.contiguous(),
        right,
        right_sums.contiguous(),
        result,
        num_queries,
        HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(head_dim),
        num_warps=1,
    )
    return result


@triton.jit
def _merge_two(
    left,
    left_sums,
    right,
    right_sums,
    result,
    num_queries,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    query, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, DIM)
    mask = at < HEAD_DIM
    place = (query.to(tl.int64) * tl.num_programs(1) + head) * HEAD_DIM + at
    left_sum = tl.load(left_sums + head * num_queries + query)
    right_sum = tl.load(right_sums + head * num_queries + query)
    right_share = 1.0 / (1.0 + tl.exp(left_sum - right_sum))
    from_left = tl.load(left + place, mask=mask, other=0.0).to(tl.float32)
    from_right = tl.load(right + place, mask=mask, other=0.0).to(tl.float32)
    merged = from_left + (from_right - from_left) * right_share
    tl.store(result + place, merged.to(result.dtype.element_ty), mask=mask)
