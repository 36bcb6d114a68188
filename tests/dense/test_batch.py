"""Tests that a step's tensors agree with its chunks, row by row."""

from __future__ import annotations

import random

import pytest
import torch

from actors.dense.batch import IsShort, build_batch, has_one_token
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams

BLOCK_SIZE, NUM_BLOCKS = 4, 500
CPU = torch.device("cpu")


def is_short(chunk: Chunk) -> bool:
    return chunk.num_tokens <= 3


def random_chunk(draw: random.Random, num_tokens: int, num_drafts: int) -> Chunk:
    """The last tokens of a sequence with scattered blocks, some of them for tokens to come."""
    num_before = draw.randrange(40)
    tokens = draw.choices(range(1000), k=num_before + num_tokens)
    num_prompt = draw.randint(1, len(tokens))
    sequence = Sequence(
        sequence_id="a",
        owner=0,
        prompt_ids=tokens[:num_prompt],
        output_ids=tokens[num_prompt:],
        params=SamplingParams(max_tokens=1, seed=0),
        arrival=0,
        is_long=draw.random() < 0.5,
    )
    num_blocks = -(-(len(tokens) + num_drafts) // BLOCK_SIZE) + draw.randrange(2)
    sequence.blocks.extend(draw.sample(range(NUM_BLOCKS), num_blocks))
    return Chunk(sequence, num_before, len(tokens), tuple(draw.choices(range(1000), k=num_drafts)))


def random_chunks(seed: int) -> list[Chunk]:
    """Decoding sequences, some with drafts, and short and long prompts; not every step has all kinds."""
    draw = random.Random(seed)
    decoding = [random_chunk(draw, 1, draw.choice([0, 0, 2])) for _ in range(draw.randrange(6))]
    short = [random_chunk(draw, draw.randint(2, 3), 0) for _ in range(draw.randrange(3))]
    long_chunk = [random_chunk(draw, draw.randint(4, 30), 0) for _ in range(draw.randrange(3))]
    return [*decoding, *short, *long_chunk] or [random_chunk(draw, 1, 0)]


def slot(sequence: Sequence, position: int) -> int:
    return sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


@pytest.mark.parametrize("is_short", [has_one_token, is_short])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("seed", range(20))
def test_each_row_is_its_chunks(seed: int, window: int | None, is_short: IsShort) -> None:
    chunks = random_chunks(seed)
    batch = build_batch(chunks, BLOCK_SIZE, window, is_short)
    rows = [
        (chunk, position)
        for chunk in chunks
        for position in range(chunk.start, chunk.end + len(chunk.drafts))
    ]
    assert batch.token_ids.tolist() == [
        [*chunk.sequence.prompt_ids, *chunk.sequence.output_ids, *chunk.drafts][position]
        for chunk, position in rows
    ]
    assert batch.positions.tolist() == [position for _, position in rows]
    assert batch.is_long.tolist() == [int(chunk.sequence.is_long) for chunk, _ in rows]
    assert batch.slots.tolist() == [slot(chunk.sequence, position) for chunk, position in rows]
    numbers = (batch.token_ids, batch.positions, batch.is_long, batch.slots)
    assert all(part.dtype == torch.int64 and part.is_contiguous() for part in numbers)

    short_chunk = [(chunk, position) for chunk, position in rows if is_short(chunk)]
    assert (batch.decode is None) == (not short_chunk)
    if batch.decode is not None:
        parts = (batch.decode.block_table, batch.decode.starts, batch.decode.ends)
        assert all(part.dtype == torch.int32 and part.is_contiguous() for part in parts)
        ends = [position + 1 for _, position in short_chunk]
        starts = [0 if window is None else max(0, end - window) for end in ends]
        assert batch.decode.ends.tolist() == ends
        assert batch.decode.starts.tolist() == starts
        assert batch.decode.most_visible == max(end - start for start, end in zip(starts, ends, strict=True))
        for table_row, (chunk, _) in zip(batch.decode.block_table.tolist(), short_chunk, strict=True):
            blocks = list(chunk.sequence.blocks)
            assert table_row == blocks + [0] * (len(table_row) - len(blocks))

    first_row = len(short_chunk)
    for prefill, chunk in zip(batch.prefills, [c for c in chunks if not is_short(c)], strict=True):
        assert (prefill.first_row, prefill.start, prefill.end) == (first_row, chunk.start, chunk.end)
        assert prefill.slots.tolist() == [slot(chunk.sequence, position) for position in range(chunk.end)]
        first_row += chunk.num_tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_rows", range(1, 10))
def test_on_a_device_all_is_the_same_and_kernels_find_aligned_addresses(num_rows: int) -> None:
    draw = random.Random(num_rows)
    chunks = [random_chunk(draw, 1, 0) for _ in range(num_rows)] + [random_chunk(draw, 30, 0)]
    here = build_batch(chunks, BLOCK_SIZE, 20)
    there = here.to(torch.device("cuda"))
    assert here.decode is not None and there.decode is not None
    for name in ("token_ids", "positions", "is_long", "slots"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name))
    for name in ("block_table", "starts", "ends"):
        part = getattr(there.decode, name)
        assert torch.equal(part.cpu(), getattr(here.decode, name)) and part.data_ptr() % 16 == 0
    assert torch.equal(there.prefills[0].slots.cpu(), here.prefills[0].slots)


def test_wide_chunks_come_last() -> None:
    draw = random.Random(1)
    with pytest.raises(AssertionError):
        build_batch([random_chunk(draw, 5, 0), random_chunk(draw, 1, 0)], BLOCK_SIZE, None)
