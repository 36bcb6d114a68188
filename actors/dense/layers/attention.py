"""Grouped-query attention over the block cache.

Legend: T tokens, B decoding sequences, A query heads, G key-value heads, Q = A / G, D head dimension, S
context.

Keys and values of the step's own tokens are written first, so that every query finds its whole context in the
cache.

CUDA with Triton          a kernel to rotate and write all rows, one for decoding rows (`paged_attention.py`)
CPU with kernels          one call for all decoding rows (`cpu_decode_attention.py`), torch for prompts
otherwise                 torch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import DecodeRows, StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.cpu_decode_attention import decode_kernel
from actors.dense.layers.prefill_attention import make_prefill
from actors.dense.layers.rope import Tables, rotate
from actors.devices import has_triton

if TYPE_CHECKING:
    from actors.dense.layers.paged_attention import PagedAttention


class Attention:
    """The attention of one model on one device, between its two projections."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._num_heads, self._head_dim = config.num_heads, config.head_dim
        self._num_rotated = config.num_heads + config.num_kv_heads
        self._decode_kernel = decode_kernel(config, dtype, device)
        self._paged = _paged_attention(config) if has_triton(device) else None
        self._prefill = make_prefill(config, dtype, device)

    def __call__(
        self, cache: KVCache, layer: int, batch: StepBatch, qkv: torch.Tensor, tables: Tables
    ) -> torch.Tensor:
        """Return the attention output [T, A * D] for projected rows qkv [T, (A + 2 G) * D] of one layer.

        tables: cos and sin, [T, 1, D / 2] each. The rows' keys and values are written to the cache.
        """
        if self._paged is not None:
            return self._on_device(self._paged, cache, layer, batch, qkv, tables)
        decode, kernel = batch.decode, self._decode_kernel
        if kernel is None or decode is None:
            return self._by_torch(cache, layer, batch, qkv, tables)
        out = kernel(cache, layer, batch, qkv, tables)
        if not batch.prefills:
            return out
        return torch.cat((out, self._by_torch(cache, layer, batch, qkv, tables, len(decode.ends))))

    def _on_device(
        self,
        paged: PagedAttention,
        cache: KVCache,
        layer: int,
        batch: StepBatch,
        qkv: torch.Tensor,
        tables: Tables,
    ) -> torch.Tensor:
        queries = paged.rotate_and_write(cache, layer, batch, qkv, tables)
        parts = []
        if batch.decode is not None:
            parts.append(paged.attend(cache, layer, batch.decode, queries[: len(batch.decode.ends)]))
        for prefill in batch.prefills:
            rows = slice(prefill.first_row, prefill.first_row + prefill.end - prefill.start)
            parts.append(self._prefill(prefill, queries[rows], *cache.read(layer, prefill.slots)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _by_torch(
        self,
        cache: KVCache,
        layer: int,
        batch: StepBatch,
        qkv: torch.Tensor,
        tables: Tables,
        first_row: int = 0,
    ) -> torch.Tensor:
        """Compute the rows from `first_row` on: all rows, or those of prefills."""
        cos, sin = tables
        heads = qkv[first_row:].view(qkv.shape[0] - first_row, -1, self._head_dim)
        rotated = rotate(heads[:, : self._num_rotated], cos[first_row:], sin[first_row:])
        queries, keys = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
        values = heads[:, self._num_rotated :]
        cache.write(layer, batch.slots[first_row:], keys, values)
        parts = []
        if batch.decode is not None and first_row == 0:
            parts.append(_decode(cache, layer, batch.decode, queries))
        for prefill in batch.prefills:
            begin = prefill.first_row - first_row
            rows = slice(begin, begin + prefill.end - prefill.start)
            context = (keys[rows], values[rows]) if prefill.start == 0 else cache.read(layer, prefill.slots)
            parts.append(self._prefill(prefill, queries[rows], *context))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _paged_attention(config: ModelConfig) -> PagedAttention:
    from actors.dense.layers.paged_attention import PagedAttention

    return PagedAttention(config)


def _decode(cache: KVCache, layer: int, rows: DecodeRows, queries: torch.Tensor) -> torch.Tensor:
    """Attention of the decoding rows. The Q query heads of a group take the place that positions have in a
    prefill, so no key is copied for each head."""
    slots, visible = rows.gathered
    num_sequences = slots.shape[0]
    keys, values = cache.read(layer, slots)  # [B, S, G, D]
    num_groups, head_dim = keys.shape[2:]
    grouped = queries[:num_sequences].reshape(num_sequences, num_groups, -1, head_dim)
    out = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible
    )
    return out.reshape(num_sequences, -1)
