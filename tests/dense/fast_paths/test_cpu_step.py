"""A step in one call per layer against the same step taken operation by operation."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import Norm, read_dense
from actors.dense.batch import build_batch, has_one_token
from actors.dense.fast_paths.cpu_step import CpuStep
from actors.dense.kv_cache import KVCache
from actors.dense.layers.norm import make_norm, norm_kernels
from actors.dense.model import DenseModel
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.exchange.local import LocalExchange
from actors.expert.experts import GroupedExperts
from actors.protocol.messages import SamplingParams
from tests.support import small_checkpoints

CPU = torch.device("cpu")
BLOCK_SIZE = 4
CONTEXTS = (3, 17, 40, 61)
KINDS = [
    pytest.param((torch.float32, None), id="float32"),
    pytest.param((torch.bfloat16, None), id="bfloat16"),
    pytest.param((torch.bfloat16, "int8"), id="int8"),
]
"""dtypes and quantizations of the dense part."""


@dataclass(frozen=True)
class Part:
    model: DenseModel
    experts: GroupedExperts
    config: ModelConfig
    dtype: torch.dtype
    make_model: Callable[[], DenseModel]

    def step(self, chunks: list[Chunk], cache: KVCache) -> torch.Tensor:
        return self.model.step(chunks, cache, LocalExchange(self.experts.forward)).clone()


@pytest.fixture(scope="module", params=KINDS)
def part(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Part:
    spec = next(spec for spec in small_checkpoints.CATALOGUE if spec.name == "wide-heads-window-newer")
    directory: Path = small_checkpoints.write(spec, tmp_path_factory.mktemp("wide"))
    config, reader = ModelConfig.from_directory(directory), CheckpointReader(directory)
    dtype, quantization = request.param
    if norm_kernels(config, dtype, CPU) is None:
        pytest.skip("this processor or installation has no kernels")

    def make_model() -> DenseModel:
        return DenseModel(config, read_dense(reader, config, dtype, "cpu"), quantization)

    experts = GroupedExperts.load(reader, config, range(16), dtype)
    return Part(make_model(), experts, config, dtype, make_model)


def sequence(index: int, num_tokens: int, first_block: int) -> Sequence:
    made = Sequence(
        sequence_id=str(index),
        owner=0,
        prompt_ids=[(7 * index + 3 * position) % 50 + 1 for position in range(num_tokens)],
        output_ids=[],
        params=SamplingParams(max_tokens=1, seed=0),
        arrival=index,
    )
    made.blocks = array("i", range(first_block, first_block + -(-num_tokens // BLOCK_SIZE)))
    return made


def test_a_decoding_row_has_the_same_bits_whether_or_not_a_prompt_joins_its_step(part: Part) -> None:
    sequences, first_block = [], 0
    for index, length in enumerate((*CONTEXTS, 9)):
        sequences.append(sequence(index, length, first_block))
        first_block += len(sequences[-1].blocks)
    decoding, prompt = sequences[:-1], sequences[-1]
    cache = KVCache(part.config, first_block, BLOCK_SIZE, part.dtype, CPU)
    part.step([Chunk(s, 0, len(s.prompt_ids) - 1) for s in decoding if len(s.prompt_ids) > 1], cache)
    last = [Chunk(s, len(s.prompt_ids) - 1, len(s.prompt_ids)) for s in decoding]

    alone = part.step(last, cache)
    joined = part.step([*last, Chunk(prompt, 0, len(prompt.prompt_ids))], cache)

    assert torch.equal(alone, joined[: len(last)])
    for row, chunk in enumerate(last):
        assert torch.equal(part.step([chunk], cache)[0], alone[row])


@pytest.mark.parametrize("sizes", [(150,), (5, 145), (63, 1, 2, 84), (3, 127, 20)], ids=str)
def test_a_short_chunk_of_a_prompt_has_the_bits_of_its_tokens_one_by_one(
    part: Part, sizes: tuple[int, ...]
) -> None:
    """This holds beyond the window too, and other sequences in the step keep their own bits."""
    prompt, decoding = sequence(0, 150, 0), sequence(1, 9, 40)
    expected = prefill_in_pieces(part, prompt, decoding, (1,) * 150)
    assert torch.equal(prefill_in_pieces(part, prompt, decoding, sizes), expected)


def prefill_in_pieces(
    part: Part, prompt: Sequence, decoding: Sequence, sizes: tuple[int, ...]
) -> torch.Tensor:
    """Rows of the prompt's positions, then of the other sequence's in the last step."""
    cache = KVCache(part.config, 43, BLOCK_SIZE, part.dtype, CPU)
    length = len(decoding.prompt_ids)
    part.step([Chunk(decoding, 0, length - 1)], cache)
    rows, start = [], 0
    for size in sizes:
        short_chunk = Chunk(prompt, start, start + size)
        assert part.model.is_short(short_chunk)
        out = part.step([Chunk(decoding, length - 1, length), short_chunk], cache)
        rows.append(out[1:])
        start += size
    return torch.cat((*rows, out[:1]))


def test_a_short_chunk_computes_what_a_long_one_does(part: Part) -> None:
    if part.dtype == torch.bfloat16:
        pytest.skip("scores that are rounded elsewhere may choose another expert")
    prompt = sequence(0, 40, 0)
    chunk = Chunk(prompt, 0, len(prompt.prompt_ids))
    short_chunk = part.step([chunk], KVCache(part.config, len(prompt.blocks), BLOCK_SIZE, part.dtype, CPU))
    long_chunk = part.model.forward(
        build_batch([chunk], BLOCK_SIZE, part.config.sliding_window, has_one_token),
        KVCache(part.config, len(prompt.blocks), BLOCK_SIZE, part.dtype, CPU),
        LocalExchange(part.experts.forward),
    )
    torch.testing.assert_close(short_chunk, long_chunk, rtol=1e-4, atol=1e-4)


def test_long_prompts_are_wide_where_the_processor_multiplies_in_tiles(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sequence(0, 100_000, 0)
    for has_tiles in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_tiles=has_tiles: has_tiles)
        model = part.make_model()
        assert model.is_short(Chunk(made, 0, 10))
        assert model.is_short(Chunk(made, 99_999, 100_000))
        assert model.is_short(Chunk(made, 0, 4_000)) != has_tiles
        assert model.is_short(Chunk(made, 99_900, 100_000)) != has_tiles


def test_another_cache_is_another_cache(part: Part) -> None:
    """The layers remember addresses of the cache that they were used with."""
    chunk = Chunk(sequence(0, 1, 0), 0, 1)
    first, second = (KVCache(part.config, 1, BLOCK_SIZE, part.dtype, CPU) for _ in range(2))
    rows = torch.arange(BLOCK_SIZE)
    for cache in (first, second):
        zeros = torch.zeros((BLOCK_SIZE, part.config.num_kv_heads, part.config.head_dim), dtype=part.dtype)
        cache.write(0, rows, zeros, zeros)
    part.step([chunk], first)
    part.step([chunk], second)
    for one, other in zip(first.read(0, rows), second.read(0, rows), strict=True):
        assert one.any() and torch.equal(one, other)


def test_the_kernels_serve_wherever_they_can(part: Part) -> None:
    shape = (part.config.vocab_size, part.config.hidden_size)
    assert CpuStep.make(part.config, torch.empty(shape, dtype=part.dtype), []) is not None
    assert CpuStep.make(part.config, torch.empty(shape, dtype=torch.float16), []) is None
    assert CpuStep.make(part.config, torch.empty(shape, dtype=part.dtype, device="meta"), []) is None


def test_the_norm_is_torchs(part: Part) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((5, part.config.hidden_size), generator=generator) * 3 + 100
    gain, shift = torch.randn((2, part.config.hidden_size), generator=generator)
    norm = Norm(gain.to(part.dtype), shift.to(part.dtype))
    exact = F.layer_norm(
        x.to(part.dtype).double(),
        x.shape[-1:],
        norm.weight.double(),
        norm.bias.double(),
        part.config.layer_norm_eps,
    )
    ours = make_norm(part.config, part.dtype, CPU)(x.to(part.dtype), norm)
    tolerance = 1e-4 if part.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
