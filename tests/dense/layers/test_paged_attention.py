"""Attention by block table against torch's attention over gathered rows, on the same cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.presets import preset_config
from actors.dense.batch import StepBatch, build_batch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.attention import Attention
from actors.dense.layers.paged_attention import PagedAttention
from actors.dense.layers.rope import RotaryEmbedding, Tables, rotate
from actors.dense.scheduling.scheduler import Chunk
from actors.gpu_check.build import BLOCK_SIZE, Rows, last_token

pytestmark = MARKS
CPU = torch.device("cpu")
TINY = preset_config("tiny")
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
SHAPES = [
    pytest.param(TINY, id="tiny"),
    pytest.param(dataclasses.replace(TINY, num_heads=6, num_kv_heads=2, sliding_window=70), id="window"),
    pytest.param(
        dataclasses.replace(TINY, num_heads=2, num_kv_heads=2, head_dim=64, rope=preset_config("mid").rope),
        id="one-query-per-key",
    ),
]


def attend(
    config: ModelConfig, cache: KVCache, chunks: list[Chunk], qkv: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Compute attention by block table on the device."""
    batch = build_batch(chunks, BLOCK_SIZE, config.sliding_window).to(device)
    tables = RotaryEmbedding(config.rope, config.head_dim, device).tables(batch.positions, batch.is_long)
    return by_block_table(config, cache, batch, qkv.to(device), tables)


def by_block_table(
    config: ModelConfig, cache: KVCache, batch: StepBatch, qkv: torch.Tensor, tables: Tables
) -> torch.Tensor:
    paged = PagedAttention(config)
    queries = paged.rotate_and_write(cache, 0, batch, qkv, tables)
    assert batch.decode is not None
    return paged.attend(cache, 0, batch.decode, queries)


def two_caches(config: ModelConfig, rows: Rows, dtype: torch.dtype) -> tuple[KVCache, KVCache]:
    """Two caches with the same content, on a CPU and on the device."""
    here = rows.cache(dtype, CPU)
    there = KVCache(config, rows.num_blocks, BLOCK_SIZE, dtype, DEVICE)
    for layer in range(config.num_layers):
        there.layer(layer)[0].copy_(here.layer(layer)[0])
        there.layer(layer)[1].copy_(here.layer(layer)[1])
    return here, there


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("config", SHAPES)
def test_it_agrees_with_attention_over_gathered_rows(config: ModelConfig, dtype: torch.dtype) -> None:
    rows = Rows(config)
    chunks = [last_token(rows.sequence(n)) for n in (1, 2, 64, 65, 129, 300)]
    here, there = two_caches(config, rows, dtype)
    qkv = torch.randn(len(chunks), (config.num_heads + 2 * config.num_kv_heads) * config.head_dim).to(dtype)
    batch = build_batch(chunks, BLOCK_SIZE, config.sliding_window)
    tables = RotaryEmbedding(config.rope, config.head_dim, CPU).tables(batch.positions, batch.is_long)
    expected = Attention(config, dtype, CPU)(here, 0, batch, qkv, tables).float()
    result = attend(config, there, chunks, qkv, DEVICE).cpu().float()
    assert (result - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    for part, expected_part in zip(there.layer(0), here.layer(0), strict=True):
        assert torch.allclose(part.cpu().float(), expected_part.float(), atol=TOLERANCE[dtype])


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch() -> None:
    rows = Rows(TINY)
    chunks = [last_token(rows.sequence(n)) for n in (3, 200, 520)]
    _, cache = two_caches(TINY, rows, HALF)
    qkv = torch.randn(3, (TINY.num_heads + 2 * TINY.num_kv_heads) * TINY.head_dim).to(HALF)
    together = attend(TINY, cache, chunks, qkv, DEVICE)
    for index, chunk in enumerate(chunks):
        alone = attend(TINY, cache, [chunk], qkv[index : index + 1], DEVICE)
        assert torch.equal(alone[0], together[index])


def test_drafts_see_those_before_them() -> None:
    rows = Rows(TINY)
    sequence = rows.sequence(140)
    here, there = two_caches(TINY, rows, torch.float32)
    chunk = Chunk(sequence, 130, 131, tuple(sequence.prompt_ids[131:134]))
    qkv = torch.randn(4, (TINY.num_heads + 2 * TINY.num_kv_heads) * TINY.head_dim)
    batch = build_batch([chunk], BLOCK_SIZE, None)
    tables = RotaryEmbedding(TINY.rope, TINY.head_dim, CPU).tables(batch.positions, batch.is_long)
    expected = Attention(TINY, torch.float32, CPU)(here, 0, batch, qkv, tables)
    result = attend(TINY, there, [chunk], qkv, DEVICE).cpu()
    assert torch.allclose(result, expected, atol=1e-5)


def test_rows_that_pad_the_batch_touch_nothing() -> None:
    rows = Rows(TINY)
    chunks = [last_token(rows.sequence(n)) for n in (40, 90)]
    _, cache = two_caches(TINY, rows, torch.float32)
    qkv = torch.randn(4, (TINY.num_heads + 2 * TINY.num_kv_heads) * TINY.head_dim, device=DEVICE)
    expected = attend(TINY, cache, chunks, qkv[:2], DEVICE)
    before = [part.clone() for part in cache.layer(0)]
    batch = build_batch(chunks, BLOCK_SIZE, None).to(DEVICE)
    assert batch.decode is not None

    def padded(part: torch.Tensor) -> torch.Tensor:
        return torch.cat((part, torch.zeros_like(part)))

    decode = dataclasses.replace(
        batch.decode,
        block_table=padded(batch.decode.block_table),
        starts=padded(batch.decode.starts),
        ends=padded(batch.decode.ends),
    )
    batch = dataclasses.replace(
        batch,
        decode=decode,
        positions=padded(batch.positions),
        is_long=padded(batch.is_long),
        slots=torch.cat((batch.slots, torch.full_like(batch.slots, -1))),
    )
    tables = RotaryEmbedding(TINY.rope, TINY.head_dim, DEVICE).tables(batch.positions, batch.is_long)
    result = by_block_table(TINY, cache, batch, qkv, tables)
    assert torch.equal(result[:2], expected)
    assert torch.equal(result[2:], torch.zeros_like(result[2:]))
    for part, part_before in zip(cache.layer(0), before, strict=True):
        assert torch.equal(part, part_before)


def test_a_prompt_s_rows_are_rotated_and_written_beside_decoding_ones() -> None:
    """There are more heads than one program takes, and the kinds of heads do not begin where a program's
    heads begin."""
    config = dataclasses.replace(TINY, num_heads=10, num_kv_heads=5)
    rows = Rows(config)
    chunks = [last_token(rows.sequence(20)), Chunk(rows.sequence(37), 16, 37)]
    cache = rows.cache(torch.float32, DEVICE)
    before = [part.clone() for part in cache.layer(0)]
    batch = build_batch(chunks, BLOCK_SIZE, None).to(DEVICE)
    tables = RotaryEmbedding(config.rope, config.head_dim, DEVICE).tables(batch.positions, batch.is_long)
    qkv = torch.randn(22, 20 * config.head_dim, device=DEVICE)
    queries = PagedAttention(config).rotate_and_write(cache, 0, batch, qkv, tables)
    heads = qkv.view(22, 20, -1)
    rotated = rotate(heads[:, :15], *tables)
    assert torch.allclose(queries, rotated[:, :10], atol=1e-6)
    before[0][batch.slots], before[1][batch.slots] = rotated[:, 10:], heads[:, 15:]
    for part, expected in zip(cache.layer(0), before, strict=True):
        assert torch.allclose(part, expected, atol=1e-6)
