"""Attention on CUDA with Triton: it launches the kernels of `actors.gpu.attention.paged_attention` for one
model's shapes.

Legend: T tokens of a step, B decoding rows, A query heads, G key-value heads, D head dimension.

This file imports Triton, so it may be imported only if `has_triton` returns True.
"""

from __future__ import annotations

import torch
import triton

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import DecodeRows, StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.rope import Tables
from actors.gpu.attention import paged_attention as kernels
from actors.gpu.attention.splits import LEAST_PART, MOST_PARTS, TILE, num_parts
from actors.gpu.buckets import parts_bucket

_LOG2_E = 1.4426950408889634
_HEADS = 8
"""Number of heads that one program rotates."""
_LEAST_SIDE = 16
"""Least number of rows and columns of a matrix in `tl.dot`."""


class PagedAttention:
    """The kernels for one model's shapes."""

    def __init__(self, config: ModelConfig) -> None:
        self._num_heads, self._num_groups = config.num_heads, config.num_kv_heads
        self._head_dim = config.head_dim
        self._padded_dim = max(_LEAST_SIDE, triton.next_power_of_2(config.head_dim))
        self._scale = _LOG2_E / config.head_dim**0.5

    def rotate_and_write(
        self, cache: KVCache, layer: int, batch: StepBatch, qkv: torch.Tensor, tables: Tables
    ) -> torch.Tensor:
        """Rotate the queries and keys of qkv [T, (A + 2 G) * D], all rows of the step. Write keys and values
        to the cache; return the queries [T, A, D]."""
        num_tokens, (keys, values), (cos, sin) = qkv.shape[0], cache.layer(layer), tables
        queries = torch.empty(
            (num_tokens, self._num_heads, self._head_dim), dtype=qkv.dtype, device=qkv.device
        )
        num_kinds = self._num_heads + 2 * self._num_groups
        kernels.rotate_and_write[(num_tokens, triton.cdiv(num_kinds, _HEADS))](
            qkv.contiguous(),
            cos,
            sin,
            batch.slots,
            queries,
            keys,
            values,
            NUM_HEADS=self._num_heads,
            NUM_GROUPS=self._num_groups,
            HEAD_DIM=self._head_dim,
            HALF=triton.next_power_of_2(self._head_dim // 2),
            HEADS=_HEADS,
            num_warps=2,
        )
        return queries

    def attend(self, cache: KVCache, layer: int, rows: DecodeRows, queries: torch.Tensor) -> torch.Tensor:
        """Attention output [B, A * D] for rotated queries [B, A, D], whose own keys and values are already in
        the cache."""
        num_sequences, (keys, values) = len(rows.ends), cache.layer(layer)
        max_parts = parts_bucket(num_parts(rows.most_visible))
        partial = (num_sequences, self._num_heads, max_parts)
        sums = torch.empty((*partial, self._head_dim), dtype=torch.float32, device=queries.device)
        tops, totals = (torch.empty(partial, dtype=torch.float32, device=queries.device) for _ in range(2))
        kernels.attend[(num_sequences, self._num_groups, max_parts)](
            queries,
            keys,
            values,
            rows.block_table,
            rows.block_table.stride(0),
            rows.starts,
            rows.ends,
            sums,
            tops,
            totals,
            self._scale,
            NUM_GROUPS=self._num_groups,
            NUM_QUERIES=self._num_heads // self._num_groups,
            QUERIES=max(_LEAST_SIDE, triton.next_power_of_2(self._num_heads // self._num_groups)),
            HEAD_DIM=self._head_dim,
            DIM=self._padded_dim,
            BLOCK_SIZE=rows.block_size,
            TILE=TILE,
            LEAST_PART=LEAST_PART,
            MOST_PARTS=MOST_PARTS,
            MAX_PARTS=max_parts,
            num_warps=4,
            num_stages=3,
        )
        out = torch.empty(
            (num_sequences, self._num_heads * self._head_dim), dtype=queries.dtype, device=queries.device
        )
        kernels.merge_parts[(num_sequences, self._num_heads)](
            sums,
            tops,
            totals,
            rows.starts,
            rows.ends,
            out,
            NUM_HEADS=self._num_heads,
            HEAD_DIM=self._head_dim,
            DIM=self._padded_dim,
            TILE=TILE,
            LEAST_PART=LEAST_PART,
            MOST_PARTS=MOST_PARTS,
            MAX_PARTS=max_parts,
            num_warps=4,
        )
        return out
