"""Kernels that write keys and values to the block cache and compute attention over it for decoding sequences.

They find the blocks by block table and read them in place. `actors.dense.layers.paged_attention` launches
them.

Legend: T tokens of a step, B decoding sequences, A query heads, G key-value heads, Q = A / G, D head
dimension, R cache rows, M blocks of the longest sequence, P parts of a context (`splits.py`).

    rotate_and_write     returns the rotated queries [T, A, D]; writes the step's rotated keys and its values
                         to their cache rows
    attend               one program per (sequence, key-value head, part): its Q query heads attend to the
                         positions of the part
    merge_parts          one program per (sequence, query head): adds the parts' sums, weighed by their
                         largest scores

A row whose slot is -1 and whose end is 0 is padding: it reads and writes nothing of the cache, and its output
is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_and_write(
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
def attend(
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
def merge_parts(
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
    # A padding row has no part, so its largest score is -inf; the bound avoids -inf - -inf, which is NaN.
    largest = tl.maximum(tl.max(top, axis=0), -1.0e38)
    shares = tl.exp2(top - largest)
    whole = tl.sum(total * shares, axis=0)
    result = tl.sum(weighed * shares[:, None], axis=0) / tl.maximum(whole, 1.0e-38)
    tl.store(
        out + (row * NUM_HEADS + head) * HEAD_DIM + at, result.to(out.dtype.element_ty), mask=at < HEAD_DIM
    )
