"""Builds a preset with random weights on the device, its experts in the same process, and random sequences.

Legend: G key-value heads, D head dimension, R cache rows.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.layout import expert_matrices
from actors.checkpoint.quantization import KINDS, group_size
from actors.checkpoint.quantized_weight import dequantize, quantize
from actors.checkpoint.read_quantized import serving_quantization
from actors.checkpoint.weights import read_dense
from actors.dense.batch import StepBatch, build_batch
from actors.dense.kv_cache import KVCache
from actors.dense.model import DenseModel
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.exchange.interface import Exchange
from actors.exchange.local import LocalExchange
from actors.expert.experts import GroupedExperts
from actors.protocol.messages import SamplingParams

BLOCK_SIZE = 16
"""Tokens per KV block, the default of `DenseSettings`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A whole model that computes on one device, in one process."""

    config: ModelConfig
    reader: DummyReader
    model: DenseModel
    exchange: Exchange
    dtype: torch.dtype
    device: torch.device
    quantization: str | None
    """Kind of quantization of the experts, or None."""

    @property
    def expert_item_bytes(self) -> float:
        """Bytes of one weight of an expert."""
        return self.dtype.itemsize if self.quantization is None else KINDS[self.quantization].num_bits / 8

    def expert(self, layer: int, number: int) -> list[torch.Tensor]:
        """Return w1, w3 and w2 of an expert in float32, with the values that are served."""
        matrices = expert_matrices(self.config, layer, number).items()
        whole = [self.reader.read(*matrix) for matrix in matrices]
        if self.quantization is None:
            return [weight.float() for weight in whole]
        sizes = self.config.hidden_size, self.config.intermediate_size
        size = group_size(self.quantization, sizes, self.device.type)
        return [dequantize(quantize(weight, self.quantization, size)) for weight in whole]

    def batch(self, chunks: list[Chunk]) -> StepBatch:
        """Return the batch of a step with these chunks, on the host."""
        window = self.config.sliding_window
        return build_batch(chunks, BLOCK_SIZE, window)


def build(
    preset: str, num_layers: int | None, dtype: torch.dtype, device: torch.device, quantization: str | None
) -> Built:
    """Build the preset's first `num_layers` layers (None: all), with its experts quantized to a named kind.

    Raises ValueError for an unknown preset, and for a kind that the device cannot serve.
    """
    config = preset_config(preset)
    if num_layers is not None:
        config = replace(config, num_layers=num_layers)
    reader = DummyReader(config, device=device)
    model = DenseModel(config, read_dense(reader, config, dtype, device))
    kind = serving_quantization(quantization, config, device)
    everyone = range(config.num_experts)
    experts = GroupedExperts.load(reader, config, everyone, dtype, device, quantization=kind)
    exchange = LocalExchange(experts.forward, combined=experts.combined)
    return Built(
        config=config,
        reader=reader,
        model=model,
        exchange=exchange,
        dtype=dtype,
        device=device,
        quantization=kind,
    )


class Rows:
    """Makes random sequences and gives them blocks of a cache, one after the other."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self._config = config
        self._draw = torch.Generator().manual_seed(seed)
        self.num_blocks = 0

    def sequence(self, num_tokens: int, is_long: bool | None = None) -> Sequence:
        """Return a sequence of `num_tokens` random tokens, with blocks for all of them.

        `is_long` chooses LongRoPE's long factors; with None the length decides.
        """
        config = self._config
        token_ids = torch.randint(config.vocab_size, (num_tokens,), generator=self._draw).tolist()
        threshold = config.rope.original_max_position_embeddings
        first, self.num_blocks = self.num_blocks, self.num_blocks - (-num_tokens // BLOCK_SIZE)
        return Sequence(
            sequence_id=str(first),
            owner=0,
            prompt_ids=token_ids,
            output_ids=[],
            params=SamplingParams(max_tokens=1, seed=1, temperature=0.0),
            arrival=first,
            blocks=array("i", range(first, self.num_blocks)),
            is_long=threshold is not None and num_tokens > threshold if is_long is None else is_long,
        )

    def cache(self, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Return a cache for all sequences made so far, filled with random keys and values."""
        config = self._config
        cache = KVCache(config, self.num_blocks, BLOCK_SIZE, dtype, device)
        rows = torch.arange(self.num_blocks * BLOCK_SIZE, device=device)
        shape = (len(rows), config.num_kv_heads, config.head_dim)
        keys, values = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
        for layer in range(config.num_layers):
            cache.write(layer, rows, keys, values)
        return cache


def last_token(sequence: Sequence) -> Chunk:
    """Return the chunk that decodes a sequence whose other tokens are in the cache."""
    return Chunk(sequence, sequence.num_tokens - 1, sequence.num_tokens)
