"""The rows of a step of narrow chunks, in memory that is used from step to step.

A row is a token or a draft; its sequence's blocks are read where they are. What the kernels write for it, once before the first layer
and then layer after layer, stays in cache where the same memory is written to again.

Legend: B rows, C rows that there is room for, H hidden, A query heads, G key-value heads, D head dimension, E experts,
M blocks of the longest sequence.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.kv_cache import KVCache
from actors.dense.rope import RotaryEmbedding, RotaryTables
from actors.dense.scheduler import Chunk
from actors.kernels.layer import LayerTask, RowsTask
from actors.kernels.library import Kernels
from actors.kernels.threads import num_threads

_NUMBERS_PER_ROW = 4


class Routed(NamedTuple):
    """What an exchange is given of a step's rows; the next layer overwrites it."""

    rows: torch.Tensor
    """[B, H]."""
    expert_ids: torch.Tensor
    """[B, 2] int64."""
    weights: torch.Tensor
    """[B, 2] float32."""


class StepRows:
    """Room for the rows of one model's steps; `fill` it for each. One thread uses it."""

    def __init__(self, kernels: Kernels, config: ModelConfig, embedding: torch.Tensor) -> None:
        """embedding: [V, H]."""
        self._kernels, self._config, self._embedding = kernels, config, embedding.contiguous()
        rope = RotaryEmbedding(config.rope, config.head_dim, embedding.device)
        self._short, self._long = RotaryTables(rope, False), RotaryTables(rope, True)
        self._room = _Room.make(config, self._embedding, 1)
        self._table = torch.empty(0, dtype=torch.int32)
        self._filled = RowsTask()
        self.task = LayerTask()
        """What the layers' kernels are given."""
        self.x = self._room.x
        """[B, H]: the residual stream."""
        self._use_room()

    @property
    def routed(self) -> Routed:
        room, count = self._room, len(self.x)
        return Routed(room.normed[:count], room.expert_ids[:count], room.expert_weights[:count])

    def fill(self, chunks: list[Chunk], cache: KVCache) -> int:
        """Begin a step; the number of rows. Raises IndexError for a token that the model does not have."""
        numbers, short, long = _numbers(chunks)
        count = len(numbers) // _NUMBERS_PER_ROW
        stride = -(-max(short, long) // cache.block_size)
        if count > len(self._room.x):
            self._room = _Room.make(self._config, self._embedding, 1 << (count - 1).bit_length())
            self._use_room()
        if count != len(self.x):
            self.x = self._room.x[:count]
        if count * stride > len(self._table):
            self._table = torch.empty(1 << (count * stride).bit_length(), dtype=torch.int32)
            self._filled.block_table = self.task.block_table = self._table.data_ptr()
        filled, task = self._filled, self.task
        for index, (tables, positions) in enumerate(((self._short, short), (self._long, long))):
            filled.cos_tables[index], filled.sin_tables[index] = tables.addresses(positions)
        filled.rows = numbers.buffer_info()[0]
        filled.num_rows = task.num_sequences = count
        filled.table_stride = task.table_stride = stride
        filled.block_size = task.block_size = cache.block_size
        task.combined = None
        task.num_threads = num_threads()
        if self._kernels.fill_rows(ctypes.addressof(filled)):
            raise IndexError(f"a token of {count} is not in the vocabulary of {self._embedding.shape[0]}")
        return count

    def _use_room(self) -> None:
        config, room, embedding = self._config, self._room, self._embedding
        self.x = room.x
        table = self._table.data_ptr()
        self._filled = RowsTask(
            block_table=table,
            embedding=embedding.data_ptr(),
            x=room.x.data_ptr(),
            cos=room.cos.data_ptr(),
            sin=room.sin.data_ptr(),
            slots=room.slots.data_ptr(),
            starts=room.starts.data_ptr(),
            ends=room.ends.data_ptr(),
            vocabulary=embedding.shape[0],
            row_bytes=embedding.shape[1] * embedding.itemsize,
            num_angles=config.head_dim // 2,
            window=config.sliding_window or 0,
        )
        self.task = LayerTask(
            block_table=table,
            x=room.x.data_ptr(),
            normed=room.normed.data_ptr(),
            qkv=room.qkv.data_ptr(),
            attended=room.attended.data_ptr(),
            scores=room.scores.data_ptr(),
            expert_ids=room.expert_ids.data_ptr(),
            expert_weights=room.expert_weights.data_ptr(),
            cos=room.cos.data_ptr(),
            sin=room.sin.data_ptr(),
            slots=room.slots.data_ptr(),
            starts=room.starts.data_ptr(),
            ends=room.ends.data_ptr(),
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_groups=config.num_kv_heads,
            head_dim=config.head_dim,
            num_experts=config.num_experts,
            eps=config.layer_norm_eps,
            jitter=config.router_jitter,
            is_bf16=embedding.dtype == torch.bfloat16,
        )


def _numbers(chunks: list[Chunk]) -> tuple[array[int], int, int]:
    """Of each row token, position, whether it uses the long list, and the address of its blocks. Then how many positions there are
    of the short list, and of the long one.
    """
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """What a step writes; [C, ...] each."""

    x: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    scores: torch.Tensor
    expert_ids: torch.Tensor
    expert_weights: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @staticmethod
    def make(config: ModelConfig, embedding: torch.Tensor, num_rows: int) -> _Room:
        def empty(width: int, dtype: torch.dtype = embedding.dtype) -> torch.Tensor:
            return torch.empty((num_rows, width), dtype=dtype)

        width = config.num_heads * config.head_dim
        return _Room(
            x=empty(config.hidden_size),
            normed=empty(config.hidden_size),
            qkv=empty(width + 2 * config.num_kv_heads * config.head_dim),
            attended=empty(width),
            scores=empty(config.num_experts),
            expert_ids=empty(2, torch.int64),
            expert_weights=empty(2, torch.float32),
            cos=empty(config.head_dim // 2, torch.float32),
            sin=empty(config.head_dim // 2, torch.float32),
            slots=empty(1, torch.int64),
            starts=empty(1, torch.int32),
            ends=empty(1, torch.int32),
        )
