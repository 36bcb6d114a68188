"""Attention of decoding sequences by the project's own kernels for CPUs: rotation, cache write and attention
in one call.

The kernels read the cache in place, and a sequence's result does not depend on the other sequences in the
batch.

Legend: B decoding rows, A query heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.rope import Tables
from actors.kernels.library import kernels_for
from actors.kernels.threads import num_threads


def decode_kernel(
    config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Callable[[KVCache, int, StepBatch, torch.Tensor, Tables], torch.Tensor] | None:
    """The kernel for a model, or None if there is none for dtype, device or shapes.

    It maps (cache, layer, batch, qkv, tables) to [B, A * D] for the batch's first B rows, which must be
    decoding rows.
    """
    kernels = kernels_for(dtype) if device.type == "cpu" else None
    shapes = (config.num_heads, config.num_kv_heads, config.head_dim)
    if kernels is None or not kernels.can_attend(config.head_dim):
        return None
    width, is_bf16, attend = (
        config.num_heads * config.head_dim,
        dtype == torch.bfloat16,
        kernels.decode_attention,
    )

    def decode(
        cache: KVCache, layer: int, batch: StepBatch, qkv: torch.Tensor, tables: Tables
    ) -> torch.Tensor:
        rows = batch.decode
        assert rows is not None
        num_sequences, num_blocks = rows.block_table.shape
        cos, sin = tables
        out = qkv.new_empty((num_sequences, width))
        attend(
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            *cache.addresses(layer),
            batch.slots.data_ptr(),
            rows.block_table.data_ptr(),
            rows.starts.data_ptr(),
            rows.ends.data_ptr(),
            out.data_ptr(),
            num_sequences,
            *shapes,
            num_blocks,
            rows.block_size,
            is_bf16,
            num_threads(),
        )
        return out

    return decode
