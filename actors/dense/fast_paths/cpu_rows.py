"""The rows of a step of short chunks, in memory that is used again in every step.

A row is a token or a draft. The kernels read the blocks of its sequence in place. What they write for the
row, once before the first layer and then layer after layer, stays in the CPU's caches because the same memory
is written to again.

Legend: B rows, C rows that there is memory for, H hidden, A query heads, G key-value heads, D head dimension,
E experts, M blocks of the longest sequence, V vocabulary.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import NamedTuple

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.kv_cache import KVCache
from actors.dense.layers.rope import RotaryEmbedding, RotaryTables
from actors.dense.scheduling.scheduler import Chunk
from actors.kernels.layer import LayerTask, RowsTask
from actors.kernels.library import Kernels
from actors.kernels.threads import num_threads

_NUMBERS_PER_ROW = 4


class Routed(NamedTuple):
    """The input of an exchange for a step's rows. The next layer overwrites it."""

    rows: torch.Tensor
    """[B, H]."""
    expert_ids: torch.Tensor
    """[B, 2] int64."""
    weights: torch.Tensor
    """[B, 2] float32."""


class CpuRows:
    """Memory for the rows of one model's steps. Call `fill` for each step. One thread uses it."""

    def __init__(self, kernels: Kernels, config: ModelConfig, embedding: torch.Tensor) -> None:
        """Make memory for one row. embedding: [V, H]."""
        self._kernels, self._config, self._embedding = kernels, config, embedding.contiguous()
        rope = RotaryEmbedding(config.rope, config.head_dim, embedding.device)
        self._short, self._long = RotaryTables(rope, False), RotaryTables(rope, True)
        self._source = RowsTask(
            embedding=self._embedding.data_ptr(),
            vocabulary=embedding.shape[0],
            window=config.sliding_window or 0,
        )
        self._table = torch.empty(0, dtype=torch.int32)
        self._use_room(1)

    def _use_room(self, num_rows: int) -> None:
        config, dtype = self._config, self._embedding.dtype
        self._room = _room(config, dtype, num_rows)
        self.x = self._room["x"]
        """[B, H]: the residual stream."""
        self.task = LayerTask(
            **{name: tensor.data_ptr() for name, tensor in self._room.items()},
            block_table=self._table.data_ptr(),
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_groups=config.num_kv_heads,
            head_dim=config.head_dim,
            num_experts=config.num_experts,
            eps=config.layer_norm_eps,
            jitter=config.router_jitter,
            is_bf16=dtype == torch.bfloat16,
        )
        """The arguments of the layers' kernels."""

    @property
    def routed(self) -> Routed:
        room, count = self._room, len(self.x)
        return Routed(room["normed"][:count], room["expert_ids"][:count], room["expert_weights"][:count])

    def fill(self, chunks: list[Chunk], cache: KVCache) -> None:
        """Begin a step with the rows of `chunks`. Raises IndexError for a token that the model does not
        have."""
        numbers, short, long = _numbers(chunks)
        count = len(numbers) // _NUMBERS_PER_ROW
        stride = -(-max(short, long) // cache.block_size)
        if count > len(self._room["x"]):
            self._use_room(1 << (count - 1).bit_length())
        if count != len(self.x):
            self.x = self._room["x"][:count]
        if count * stride > len(self._table):
            self._table = torch.empty(1 << (count * stride).bit_length(), dtype=torch.int32)
            self.task.block_table = self._table.data_ptr()
        source, task = self._source, self.task
        for index, (tables, positions) in enumerate(((self._short, short), (self._long, long))):
            source.cos_tables[index], source.sin_tables[index] = tables.addresses(positions)
        source.rows = numbers.buffer_info()[0]
        task.num_sequences = count
        task.table_stride = stride
        task.block_size = cache.block_size
        task.num_threads = num_threads()
        if self._kernels.fill_rows(ctypes.addressof(source), ctypes.addressof(task)):
            raise IndexError(f"a token of {count} is not in the vocabulary of {self._embedding.shape[0]}")


def _numbers(chunks: list[Chunk]) -> tuple[array[int], int, int]:
    """For each row: token, position, whether it uses LongRoPE's long list, and the address of its sequence's
    blocks. Then the number of positions that the rows with the short list need, and the number for the rows
    with the long list."""
    numbers: list[int] = []
    most = [0, 0]
    for chunk in chunks:
        sequence = chunk.sequence
        blocks, _ = sequence.blocks.buffer_info()
        position = chunk.start
        for token_id in (*sequence.token_ids(position, chunk.end), *chunk.drafts):
            numbers += (token_id, position, sequence.is_long, blocks)
            position += 1
        most[sequence.is_long] = max(most[sequence.is_long], position)
    short, long = most
    return array("q", numbers), short, long


def _room(config: ModelConfig, dtype: torch.dtype, num_rows: int) -> dict[str, torch.Tensor]:
    """The tensors [C, ...] that a step writes, by their names in LayerTask."""

    def empty(width: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty((num_rows, width), dtype=dtype)

    width = config.num_heads * config.head_dim
    return {
        "x": empty(config.hidden_size),
        "normed": empty(config.hidden_size),
        "qkv": empty(width + 2 * config.num_kv_heads * config.head_dim),
        "attended": empty(width),
        "scores": empty(config.num_experts),
        "expert_ids": empty(2, torch.int64),
        "expert_weights": empty(2, torch.float32),
        "cos": empty(config.head_dim // 2, torch.float32),
        "sin": empty(config.head_dim // 2, torch.float32),
        "slots": empty(1, torch.int64),
        "starts": empty(1, torch.int32),
        "ends": empty(1, torch.int32),
    }
