"""The rows that the kernels lay out are those of the step's batch of tensors, to the bit."""

from __future__ import annotations

import ctypes
import random
from dataclasses import replace

import pytest
import torch

from actors.dense.batch import build_batch
from actors.dense.fast_paths.cpu_rows import CpuRows
from actors.dense.kv_cache import KVCache
from actors.dense.layers.norm import norm_kernels
from actors.dense.layers.rope import RotaryEmbedding
from actors.dense.scheduling.scheduler import Chunk
from actors.kernels.library import load
from tests.dense.test_batch import BLOCK_SIZE, CPU, NUM_BLOCKS, random_chunk
from tests.exchange.peers import CONFIG

DTYPES = [torch.float32, torch.bfloat16]
VOCABULARY = 1000

pytestmark = pytest.mark.skipif(norm_kernels(CONFIG, torch.float32, CPU) is None, reason="no kernels here")


def made(dtype: torch.dtype, window: int | None = None) -> tuple[CpuRows, KVCache, torch.Tensor]:
    config = replace(CONFIG, sliding_window=window)
    embedding = torch.randn((VOCABULARY, config.hidden_size), generator=torch.Generator().manual_seed(1)).to(
        dtype
    )
    kernels = load()
    assert kernels is not None
    cache = KVCache(config, NUM_BLOCKS, BLOCK_SIZE, dtype, CPU)
    return CpuRows(kernels, config, embedding), cache, embedding


def at(address: int, like: torch.Tensor) -> torch.Tensor:
    """A copy of the numbers at an address, with the shape and dtype of `like`."""
    data = bytearray(ctypes.string_at(address, like.numel() * like.element_size()))
    return torch.frombuffer(data, dtype=like.dtype).view(like.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 7])
def test_rows_are_those_of_the_batch(dtype: torch.dtype, window: int | None) -> None:
    """Steps of all sizes run one after the other, and what an earlier step has left does not matter."""
    rows, cache, embedding = made(dtype, window)
    rope = RotaryEmbedding(CONFIG.rope, CONFIG.head_dim, CPU)
    draw = random.Random(2)
    for size in (1, 3, 2, 40, 5, 1, 70):
        chunks = [random_chunk(draw, draw.choice([1, 1, 5]), draw.choice([0, 0, 2])) for _ in range(size)]
        rows.fill(chunks, cache)
        count = len(rows.x)

        batch = build_batch(chunks, BLOCK_SIZE, window, lambda chunk: True)
        decode, task = batch.decode, rows.task
        assert decode is not None and count == len(batch.token_ids) == task.num_sequences
        assert torch.equal(rows.x, embedding[batch.token_ids])
        cos, sin = rope.tables(batch.positions, batch.is_long)
        assert torch.equal(at(task.cos, cos), cos) and torch.equal(at(task.sin, sin), sin)
        assert torch.equal(at(task.slots, batch.slots), batch.slots)
        assert torch.equal(at(task.starts, decode.starts), decode.starts)
        assert torch.equal(at(task.ends, decode.ends), decode.ends)
        table = at(task.block_table, torch.empty((count, task.table_stride), dtype=torch.int32))
        for row, end in enumerate(decode.ends.tolist()):
            num_blocks = -(-end // BLOCK_SIZE)
            assert torch.equal(table[row, :num_blocks], decode.block_table[row, :num_blocks])


def test_angles_far_out_are_those_of_the_batch() -> None:
    """The tables of positions grow; both lists have their own."""
    rows, cache, _ = made(torch.float32)
    rope = RotaryEmbedding(CONFIG.rope, CONFIG.head_dim, CPU)
    for is_long, end in ((False, 4096), (True, 9001), (False, 5000), (True, 4)):
        chunk = random_chunk(random.Random(3), 1, 0)
        sequence = replace(chunk.sequence, prompt_ids=[7] * end, output_ids=[], is_long=is_long)
        sequence.blocks.extend([0] * (end // BLOCK_SIZE + 1))
        rows.fill([Chunk(sequence, end - 1, end)], cache)
        cos, sin = rope.tables(torch.tensor([end - 1]), torch.tensor([int(is_long)]))
        assert torch.equal(at(rows.task.cos, cos), cos) and torch.equal(at(rows.task.sin, sin), sin)


@pytest.mark.parametrize("token_id", [-1, VOCABULARY])
def test_a_token_that_the_model_lacks_is_an_error(token_id: int) -> None:
    rows, cache, _ = made(torch.float32)
    chunk = random_chunk(random.Random(4), 1, 0)
    unknown = replace(chunk.sequence, prompt_ids=[1], output_ids=[token_id])
    with pytest.raises(IndexError, match="not in the vocabulary of 1000"):
        rows.fill([chunk, Chunk(unknown, 1, 2)], cache)
