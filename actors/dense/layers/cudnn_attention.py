"""Attention of a prompt's chunk by cuDNN, on Hopper and later.

Legend: T tokens of the chunk, S its context (the chunk included), A query heads, G key-value heads, D head
dimension.

cuDNN makes a plan for every new shape, which takes longer than one call saves. It also supports a causal mask
only if queries and keys begin at the same position. So it gets only whole chunks, which have few sizes. One
call computes the chunk's own causal triangle, and a second call computes all positions before the chunk. The
two results are merged by the sums that each was divided by.
"""

from __future__ import annotations

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import Prefill, PrefillRows

_UNIT = 1024
"""A chunk is whole if its start and its end are multiples of this."""
_LEAST_CAPABILITY = (9, 0)
"""Compute capability of Hopper."""
_MOST_DIM = 128


def has_cudnn(config: ModelConfig, device: torch.device) -> bool:
    """Whether cuDNN's attention supports the model. Call it for a 16-bit model on a CUDA device with
    Triton."""
    is_new = torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
    has_library: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return is_new and has_library and config.head_dim <= _MOST_DIM


def make_cudnn_prefill(window: int | None, other: Prefill) -> Prefill:
    """Use cuDNN for whole chunks with nothing outside the window, and `other` for the rest. Needs Triton."""
    from actors.gpu.attention.merge import merge

    def prefill(
        rows: PrefillRows, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        is_whole = rows.start % _UNIT == 0 and rows.end % _UNIT == 0
        if not is_whole or (window is not None and rows.end > window):
            return other(rows, queries, keys, values)
        own, own_sums = _attend(queries, keys[rows.start :], values[rows.start :], is_causal=True)
        if rows.start == 0:
            return own.reshape(queries.shape[0], -1)
        before, sums = _attend(queries, keys[: rows.start], values[: rows.start], is_causal=False)
        return merge(own, own_sums, before, sums)

    return prefill


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with queries [T, A, D] to keys and values [S, G, D]; return contiguous results [T, A, D] and the
    logarithms [A, T] of the sums that they were divided by."""
    parts = (part.transpose(0, 1)[None] for part in (queries, keys, values))
    out, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *parts, None, True, 0.0, is_causal, False
    )
    return out[0].transpose(0, 1).contiguous(), sums[0, :, :, 0]
