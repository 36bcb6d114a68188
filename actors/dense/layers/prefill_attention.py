"""Attention of a prompt's chunk. The choice is made once, at load.

Legend: T tokens of the chunk, S its context (the chunk included), A query heads, G key-value heads, D head
dimension.

CUDA with Triton, 16-bit dtypes     torch's flash attention, which needs no mask for window and causality;
                                    for whole chunks on Hopper and later, cuDNN's attention, which is twice as
                                    fast (`cudnn_attention.py`)
otherwise                           SDPA, with a mask unless the chunk is the plain causal triangle
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import Prefill, PrefillRows
from actors.dense.layers.cudnn_attention import has_cudnn, make_cudnn_prefill
from actors.devices import has_triton

_FLASH_DIM, _MOST_FLASH_DIM = 8, 256
"""Flash attention supports head dimensions that are multiples of the first number, up to the second."""


def make_prefill(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Prefill:
    """The attention of prompts for this model, dtype and device."""
    has_flash_dim = config.head_dim % _FLASH_DIM == 0 and config.head_dim <= _MOST_FLASH_DIM
    if has_triton(device) and dtype != torch.float32 and has_flash_dim:
        flash = _flash_prefill(config.sliding_window)
        return flash if not has_cudnn(config, device) else make_cudnn_prefill(config.sliding_window, flash)
    return sdpa_prefill


def sdpa_prefill(
    rows: PrefillRows, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    out = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=rows.visible,
        is_causal=rows.visible is None,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).reshape(queries.shape[0], -1)


def _flash_prefill(window: int | None) -> Prefill:
    # The public function `varlen_attn` supports fewer key-value heads than query heads only from torch 2.12
    # on. Both call this operator. It aligns the causal mask at the last query and the last key.
    flash = torch.ops.aten._flash_attention_forward
    left = None if window is None else window - 1

    def prefill(
        rows: PrefillRows, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        num_keys = keys.shape[0]
        seen_left = None if left is None or left >= num_keys else left
        out: torch.Tensor = flash(
            queries[None],
            keys[None],
            values[None],
            None,
            None,
            queries.shape[0],
            num_keys,
            0.0,
            True,
            False,
            window_size_left=seen_left,
            window_size_right=0,
        )[0]
        return out.reshape(queries.shape[0], -1)

    return prefill
