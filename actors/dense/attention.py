"""Grouped-query attention over the block cache.

Legend: T tokens, B decoding sequences, A query heads, G key-value heads, Q = A / G, D head dimension, S context.

Keys and values of the step's own tokens are written first, so that every query finds its whole context there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.dense.batch import DecodeRows, PrefillRows, StepBatch
from actors.dense.kv_cache import KVCache


def attend(
    cache: KVCache,
    layer: int,
    batch: StepBatch,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Attention output [T, A * D] for rotated queries [T, A, D], keys and values [T, G, D] of one layer."""
    cache.write(layer, batch.slots, keys, values)
    parts = [] if batch.decode is None else [_decode(cache, layer, batch.decode, queries)]
    for prefill in batch.prefills:
        rows = slice(prefill.first_row, prefill.first_row + prefill.end - prefill.start)
        context = (keys[rows], values[rows]) if prefill.start == 0 else cache.read(layer, prefill.slots)
        parts.append(_prefill(prefill, queries[rows], *context))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode(cache: KVCache, layer: int, rows: DecodeRows, queries: torch.Tensor) -> torch.Tensor:
    """The Q query heads of a group stand where a prefill has its positions: no key is copied per head."""
    num_sequences = rows.slots.shape[0]
    keys, values = cache.read(layer, rows.slots)  # [B, S, G, D]
    num_groups, head_dim = keys.shape[2:]
    grouped = queries[:num_sequences].reshape(num_sequences, num_groups, -1, head_dim)
    out = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=rows.visible
    )
    return out.reshape(num_sequences, -1)


def _prefill(
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
