"""The decode kernel against torch's attention over the same cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import DecodeRows, StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.layers.attention import Attention
from actors.dense.layers.cpu_decode_attention import decode_kernel
from actors.dense.layers.rope import RotaryEmbedding, Tables
from tests.support import small_checkpoints

CPU = torch.device("cpu")
NUM_BLOCKS, BLOCK_SIZE = 80, 16
ENDS = (1, 7, 64, 65, 200, 340)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    spec = next(spec for spec in small_checkpoints.CATALOGUE if spec.name == "wide-heads")
    directory: Path = small_checkpoints.write(spec, tmp_path_factory.mktemp("wide"))
    return ModelConfig.from_directory(directory)


def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def filled_cache(config: ModelConfig, dtype: torch.dtype) -> KVCache:
    cache = KVCache(config, NUM_BLOCKS, BLOCK_SIZE, dtype, CPU)
    rows = torch.arange(NUM_BLOCKS * BLOCK_SIZE)
    shape = (len(rows), config.num_kv_heads, config.head_dim)
    cache.write(0, rows, random(shape, dtype), random(shape, dtype).flip(0))
    return cache


def decoding(ends: tuple[int, ...], window: int | None) -> StepBatch:
    """One step of sequences whose blocks lie scattered over the cache."""
    free_blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
    table = torch.zeros((len(ends), -(-max(ends) // BLOCK_SIZE)), dtype=torch.int32)
    for row, end in enumerate(ends):
        num_blocks = -(-end // BLOCK_SIZE)
        table[row, :num_blocks] = torch.tensor(free_blocks[:num_blocks])
        free_blocks = free_blocks[num_blocks:]
    last = torch.tensor(ends)
    starts = torch.zeros_like(last) if window is None else (last - window).clamp_min(0)
    rows = DecodeRows(
        block_table=table,
        starts=starts.int(),
        ends=last.int(),
        block_size=BLOCK_SIZE,
        most_visible=int((last - starts).max()),
    )
    own = last - 1
    own_blocks = table.long().gather(1, (own // BLOCK_SIZE)[:, None])[:, 0]
    return StepBatch(
        token_ids=last,
        positions=last - 1,
        is_long=(last > 48).long(),
        slots=own_blocks * BLOCK_SIZE + own % BLOCK_SIZE,
        decode=rows,
        prefills=(),
    )


def attention(config: ModelConfig, dtype: torch.dtype) -> Attention:
    if decode_kernel(config, dtype, CPU) is None:
        pytest.skip("this processor or installation has no kernels")
    return Attention(config, dtype, CPU)


def run(
    compute: Attention, config: ModelConfig, batch: StepBatch, qkv: torch.Tensor, by_torch: bool = False
) -> tuple[torch.Tensor, KVCache]:
    cache = filled_cache(config, qkv.dtype)
    tables: Tables = RotaryEmbedding(config.rope, config.head_dim, CPU).tables(batch.positions, batch.is_long)
    call = compute._by_torch if by_torch else compute
    return call(cache, 0, batch, qkv, tables), cache


def projected(config: ModelConfig, num_rows: int, dtype: torch.dtype) -> torch.Tensor:
    return random((num_rows, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 40])
def test_the_kernel_equals_torch_and_writes_the_same_cache(
    config: ModelConfig, dtype: torch.dtype, window: int | None
) -> None:
    batch, qkv = decoding(ENDS, window), projected(config, len(ENDS), dtype)
    compute = attention(config, dtype)
    out, cache = run(compute, config, batch, qkv)
    expected, expected_cache = run(compute, config, batch, qkv, by_torch=True)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    for part, expected_part in zip(
        cache.read(0, batch.slots), expected_cache.read(0, batch.slots), strict=True
    ):
        assert torch.equal(part, expected_part)


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (8, 1), (9, 1), (40, 2)], ids=str)
def test_any_number_of_heads_may_share_keys(config: ModelConfig, heads: tuple[int, int]) -> None:
    """Heads that read keys together, some of them, and those that are left."""
    num_heads, num_kv_heads = heads
    hidden_size = num_heads * config.head_dim
    shaped = replace(config, hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
    batch, qkv = decoding(ENDS, None), projected(shaped, len(ENDS), torch.float32)
    compute = attention(shaped, torch.float32)
    expected, _ = run(compute, shaped, batch, qkv, by_torch=True)
    torch.testing.assert_close(run(compute, shaped, batch, qkv)[0], expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(config: ModelConfig, dtype: torch.dtype) -> None:
    batch, qkv = decoding(ENDS, None), projected(config, len(ENDS), dtype)
    compute = attention(config, dtype)
    together, _ = run(compute, config, batch, qkv)
    assert batch.decode is not None
    for row, end in enumerate(ENDS):
        part = slice(row, row + 1)
        rows = replace(
            batch.decode,
            block_table=batch.decode.block_table[part, : -(-end // BLOCK_SIZE)].contiguous(),
            starts=batch.decode.starts[part],
            ends=batch.decode.ends[part],
        )
        alone = replace(
            batch,
            positions=batch.positions[part],
            is_long=batch.is_long[part],
            slots=batch.slots[part],
            decode=rows,
        )
        assert torch.equal(run(compute, config, alone, qkv[part])[0], together[part])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(4, 1), (12, 2)], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_rows_of_one_sequence_have_the_same_bits_together_and_alone(
    config: ModelConfig, dtype: torch.dtype, heads: tuple[int, int], window: int | None
) -> None:
    """The rows read tiles together, up to where the first of them ends."""
    num_heads, num_kv_heads = heads
    hidden_size = num_heads * config.head_dim
    shaped = replace(config, hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
    firsts, sizes = (0, 30, 230), (70, 1, 41)
    whole = decoding(tuple(first + size for first, size in zip(firsts, sizes, strict=True)), None)
    assert whole.decode is not None
    sequences = torch.tensor([index for index, size in enumerate(sizes) for _ in range(size)])
    positions = torch.cat([first + torch.arange(size) for first, size in zip(firsts, sizes, strict=True)])
    table = whole.decode.block_table[sequences].contiguous()
    for row, position in enumerate(positions.tolist()):
        table[row, position // BLOCK_SIZE + 1 :] = -1  # No sequence owns what follows a row's blocks.
    slots = (
        table.long().gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0] * BLOCK_SIZE + positions % BLOCK_SIZE
    )
    ends = positions + 1
    starts = torch.zeros_like(ends) if window is None else (ends - window).clamp_min(0)
    qkv, compute = projected(shaped, len(positions), dtype), attention(shaped, dtype)
    cache = filled_cache(shaped, dtype)

    def attend(rows: slice) -> torch.Tensor:
        decode = DecodeRows(
            block_table=table[rows],
            starts=starts[rows].int(),
            ends=ends[rows].int(),
            block_size=BLOCK_SIZE,
            most_visible=int(ends.max()),
        )
        batch = replace(
            whole,
            token_ids=positions[rows],
            positions=positions[rows],
            is_long=(positions[rows] > 48).long(),
            slots=slots[rows],
            decode=decode,
        )
        tables: Tables = RotaryEmbedding(shaped.rope, shaped.head_dim, CPU).tables(
            batch.positions, batch.is_long
        )
        return compute(cache, 0, batch, qkv[rows], tables)

    together = attend(slice(None))
    alone = torch.cat([attend(slice(row, row + 1)) for row in range(len(positions))])
    assert torch.equal(together, alone)
