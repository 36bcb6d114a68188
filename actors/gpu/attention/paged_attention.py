"""Keys and values into the block cache, and attention of decoding sequences over it, read in place by block table.

Legend: T tokens of a step, B decoding sequences, A query heads, G key-value heads, Q = A / G, D head dimension, R cache rows,
M blocks of the longest sequence, P parts of a context (`splits.py`).

    rotate and write     queries rotated [T, A, D]; the step's keys, rotated, and values go to their cache rows
    attend               one program per (sequence, key-value head, part): its Q query heads over the part's positions
    merge                one program per (sequence, query head): the parts' sums, weighed by their largest scores

A row whose slot is -1 and whose end is 0 is padding: it reads and writes nothing of the cache, and its output is 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import DecodeRows, StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.rope import Tables
from actors.gpu.attention.splits import LEAST_PART, MOST_PARTS, TILE, num_parts
from actors.gpu.buckets import parts_bucket

_LOG2_E = 1.4426950408889634
_HEADS = 8
"""That a program rotates."""
_LEAST_SIDE = 16
"""Of a matrix that `tl.dot` takes."""


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
        """Queries [T, A, D] of all rows of the step, rotated; their keys and values go to the cache. qkv [T, (A + 2 G) * D]."""
        num_tokens, (keys, values), (cos, sin) = qkv.shape[0], cache.layer(layer), tables
        queries = torch.empty(
            (num_tokens, self._num_heads, self._head_dim), dtype=qkv.dtype, device=qkv.device
        )
        num_kinds = self._num_heads + 2 * self._num_groups
        _rotate_and_write[(num_tokens, triton.cdiv(num_kinds, _HEADS))](
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
        """[B, A * D] for rotated queries [B, A, D], whose own keys and values are in the cache."""
        num_sequences, (keys, values) = len(rows.ends), cache.layer(layer)
        max_parts = parts_bucket(num_parts(rows.most_visible))
        partial = (num_sequences, self._num_heads, max_parts)
        sums = torch.empty((*partial, self._head_dim), dtype=torch.float32, device=queries.device)
        tops, totals = (torch.empty(partial, dtype=torch.float32, device=queries.device) for _ in range(2))
        _attend[(num_sequences, self._num_groups, max_parts)](
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
        _merge[(num_sequences, self._num_heads)](
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


@triton.jit
def _rotate_and_write(
    qkv,
    cos,
    sin,
    slots,
    queries,
    keys,
    values,
    NUM_HEADS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    num_kinds: tl.constexpr = NUM_HEADS + 2 * NUM_GROUPS
    half: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, HALF)
    is_feature = (at < half)[None, :]
    source = qkv + (row * num_kinds + head[:, None]) * HEAD_DIM + at[None, :]
    mask = (head < num_kinds)[:, None] & is_feature
    low = tl.load(source, mask=mask, other=0.0)
    high = tl.load(source + half, mask=mask, other=0.0)
    c = tl.load(cos + row * half + at, mask=at < half, other=0.0)[None, :]
    s = tl.load(sin + row * half + at, mask=at < half, other=0.0)[None, :]
    new_low = (low.to(tl.float32) * c - high.to(tl.float32) * s).to(queries.dtype.element_ty)
    new_high = (high.to(tl.float32) * c + low.to(tl.float32) * s).to(queries.dtype.element_ty)
    query_at = queries + (row * NUM_HEADS + head[:, None]) * HEAD_DIM + at[None, :]
    is_query = (head < NUM_HEADS)[:, None] & is_feature
    tl.store(query_at, new_low, mask=is_query)
    tl.store(query_at + half, new_high, mask=is_query)
    slot = tl.load(slots + row)
    group = (head - NUM_HEADS) % NUM_GROUPS
    place = (slot * NUM_GROUPS + group[:, None]) * HEAD_DIM + at[None, :]
    is_behind = mask & (head >= NUM_HEADS)[:, None] & (slot >= 0)
    is_value = (head >= NUM_HEADS + NUM_GROUPS)[:, None]
    tl.store(keys + place, new_low, mask=is_behind & (is_value == 0))
    tl.store(keys + place + half, new_high, mask=is_behind & (is_value == 0))
    tl.store(values + place, low, mask=is_behind & is_value)
    tl.store(values + place + half, high, mask=is_behind & is_value)


@triton.jit
def _part_length(num_visible, TILE: tl.constexpr, LEAST_PART: tl.constexpr, MOST_PARTS: tl.constexpr):
    return tl.maximum(tl.cdiv(num_visible, MOST_PARTS * TILE) * TILE, LEAST_PART)


@triton.jit
def _attend(
    queries,
    keys,
    values,
    block_table,
    table_stride,
    starts,
    ends,
    sums,
    tops,
    totals,
    scale,
    NUM_GROUPS: tl.constexpr,
    NUM_QUERIES: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    LEAST_PART: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
):
    row, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, end = tl.load(starts + row), tl.load(ends + row)
    length = _part_length(end - start, TILE, LEAST_PART, MOST_PARTS)
    first = start + part * length
    last = tl.minimum(first + length, end)
    if first >= end:
        return
    query = tl.arange(0, QUERIES)
    at = tl.arange(0, DIM)
    is_query = (query < NUM_QUERIES)[:, None] & (at < HEAD_DIM)[None, :]
    heads = (row * NUM_GROUPS + group) * NUM_QUERIES + query
    q = tl.load(queries + heads[:, None] * HEAD_DIM + at[None, :], mask=is_query, other=0.0)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weighed = tl.zeros((QUERIES, DIM), tl.float32)
    for tile in range(first, last, TILE):
        position = tile + tl.arange(0, TILE)
        is_seen = position < last
        block = tl.load(block_table + row * table_stride + position // BLOCK_SIZE, mask=is_seen, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        source = (slot * NUM_GROUPS + group)[:, None] * HEAD_DIM + at[None, :]
        is_read = is_seen[:, None] & (at < HEAD_DIM)[None, :]
        k = tl.load(keys + source, mask=is_read, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp2(top - new_top)
        shares = tl.exp2(scores - new_top[:, None])
        v = tl.load(values + source, mask=is_read, other=0.0)
        total = total * shrink + tl.sum(shares, axis=1)
        weighed = weighed * shrink[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        top = new_top
    places = heads * MAX_PARTS + part
    tl.store(tops + places, top, mask=query < NUM_QUERIES)
    tl.store(totals + places, total, mask=query < NUM_QUERIES)
    tl.store(sums + places[:, None] * HEAD_DIM + at[None, :], weighed, mask=is_query)


@triton.jit
def _merge(
    sums,
    tops,
    totals,
    starts,
    ends,
    out,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    LEAST_PART: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_visible = tl.load(ends + row) - tl.load(starts + row)
    num_parts = tl.cdiv(num_visible, _part_length(num_visible, TILE, LEAST_PART, MOST_PARTS))
    part = tl.arange(0, MAX_PARTS)
    at = tl.arange(0, DIM)
    places = (row * NUM_HEADS + head) * MAX_PARTS + part
    is_part = part < num_parts
    top = tl.load(tops + places, mask=is_part, other=float("-inf"))
    total = tl.load(totals + places, mask=is_part, other=0.0)
    mask = is_part[:, None] & (at < HEAD_DIM)[None, :]
    weighed = tl.load(sums + places[:, None] * HEAD_DIM + at[None, :], mask=mask, other=0.0)
    # A padding row has no part: its largest score is -inf, and -inf less itself is no number.
    largest = tl.maximum(tl.max(top, axis=0), -1.0e38)
    shares = tl.exp2(top - largest)
    whole = tl.sum(total * shares, axis=0)
    result = tl.sum(weighed * shares[:, None], axis=0) / tl.maximum(whole, 1.0e-38)
    tl.store(
        out + (row * NUM_HEADS + head) * HEAD_DIM + at, result.to(out.dtype.element_ty), mask=at < HEAD_DIM
    )
