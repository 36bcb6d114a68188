"""One step's chunks as tensors.

Legend: T tokens in the step, B decoding rows, S longest context among them.

The step's rows are the chunks one after the other, the narrow ones first:

    rows      | d0 | d1 | d2 d2 d2 | p0 p0 p0 p0 | p1 p1 p1 |
    decode      one attention for all narrow chunks, one attention per wide one

A narrow chunk is one token (a sequence that decodes) or so few of a prompt that the model takes them the same way. Each of its
tokens and drafts is a decoding row: for the attention sequences of their own, each a position longer than the one before, in
the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from actors.dense.scheduler import Chunk
from actors.dense.to_device import to_device

IsNarrow: TypeAlias = Callable[[Chunk], bool]


@dataclass(frozen=True, kw_only=True)
class DecodeRows:
    """The first B rows: one token or draft each. Kernels find a sequence's cache rows by its blocks, and write the keys and
    values of all rows before they read any."""

    block_table: torch.Tensor
    """[B, M] int32: each row's blocks in order of position; what lies behind its end is not read."""
    starts: torch.Tensor
    """[B] int32: the first visible position."""
    ends: torch.Tensor
    """[B] int32: the position behind the last visible one; 0 for a row that only pads the batch."""
    block_size: int
    most_visible: int
    """The most positions that a row sees, or more."""

    @cached_property
    def gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For an attention that copies what it reads: cache rows [B, S] int64 of the positions 0 .. S - 1 of each row's
        sequence, and which of them it sees [B, 1, 1, S] bool. Positions that it does not see repeat its own, so that no
        row of another sequence is ever touched: masking alone would not cure 0 * NaN."""
        offsets = torch.arange(self.block_size, device=self.block_table.device)
        slots = (self.block_table.long()[:, :, None] * self.block_size + offsets).flatten(1)
        starts, ends = self.starts.long()[:, None], self.ends.long()[:, None]
        position = torch.arange(slots.shape[1], device=slots.device)[None]
        visible = (position < ends) & (position >= starts)
        slots = torch.where(visible, slots, slots.gather(1, ends - 1))
        return slots, visible[:, None, None]


@dataclass(frozen=True, kw_only=True)
class PrefillRows:
    """Rows `first_row` .. `first_row + end - start - 1`: positions start .. end - 1 of one sequence."""

    first_row: int
    start: int
    end: int
    slots: torch.Tensor
    """[end] int64: cache rows of positions 0 .. end - 1."""
    sliding_window: int | None

    @cached_property
    def visible(self) -> torch.Tensor | None:
        """For an attention that does not know the window itself: [end - start, end] bool; None where it is the plain causal
        triangle (start 0, nothing outside the window)."""
        return prefill_mask(self.start, self.end, self.sliding_window, self.slots.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What the model needs for one step, on its device."""

    token_ids: torch.Tensor
    """[T] int64."""
    positions: torch.Tensor
    """[T] int64."""
    is_long: torch.Tensor
    """[T] int64: 1 where the row's sequence uses LongRoPE's long list."""
    slots: torch.Tensor
    """[T] int64: the cache row that each token's key and value go to."""
    decode: DecodeRows | None
    prefills: tuple[PrefillRows, ...]


def has_one_token(chunk: Chunk) -> bool:
    """What every model takes as a decoding row."""
    return chunk.num_tokens == 1


def build_batch(
    chunks: list[Chunk],
    block_size: int,
    sliding_window: int | None,
    device: torch.device,
    is_narrow: IsNarrow = has_one_token,
) -> StepBatch:
    """Lay out the chunks, of which the narrow ones must come first."""
    decodes = [chunk for chunk in chunks if is_narrow(chunk)]
    assert chunks[: len(decodes)] == decodes
    token_ids: list[int] = []
    positions: list[int] = []
    is_long: list[int] = []
    for chunk in chunks:
        token_ids += [*chunk.sequence.token_ids(chunk.start, chunk.end), *chunk.drafts]
        positions += range(chunk.start, chunk.start + chunk.num_rows)
        is_long += [int(chunk.sequence.is_long)] * chunk.num_rows
    decode: DecodeRows | None = None
    slots: list[npt.NDArray[np.int64]] = []
    if decodes:
        decode, own_slots = _decode_rows(decodes, block_size, sliding_window)
        slots.append(own_slots)
    prefills: list[PrefillRows] = []
    row = sum(chunk.num_rows for chunk in decodes)
    for chunk in chunks[len(decodes) :]:
        own_slots = _cache_rows(chunk, block_size)
        prefills.append(
            PrefillRows(
                first_row=row,
                start=chunk.start,
                end=chunk.end,
                slots=to_device(torch.from_numpy(own_slots), device),
                sliding_window=sliding_window,
            )
        )
        slots.append(own_slots[chunk.start :])
        row += chunk.num_tokens
    numbers = np.array([token_ids, positions, is_long, np.concatenate(slots)], dtype=np.int64)
    columns = to_device(torch.from_numpy(numbers), device)
    return StepBatch(
        token_ids=columns[0],
        positions=columns[1],
        is_long=columns[2],
        slots=columns[3],
        decode=None if decode is None else _to_device(decode, device),
        prefills=tuple(prefills),
    )


def _decode_rows(
    chunks: list[Chunk], block_size: int, sliding_window: int | None
) -> tuple[DecodeRows, npt.NDArray[np.int64]]:
    """The rows, on the host, and the cache row of each one's own position."""
    num_rows = sum(chunk.num_rows for chunk in chunks)
    table = np.zeros((num_rows, max(len(chunk.sequence.blocks) for chunk in chunks)), dtype=np.int32)
    ends = np.empty(num_rows, dtype=np.int32)
    row = 0
    for chunk in chunks:
        behind, blocks = row + chunk.num_rows, chunk.sequence.blocks
        table[row:behind, : len(blocks)] = blocks
        ends[row:behind] = range(chunk.start + 1, chunk.start + chunk.num_rows + 1)
        row = behind
    starts = np.zeros_like(ends) if sliding_window is None else np.maximum(ends - sliding_window, 0)
    own = ends - 1
    own_slots = table[np.arange(num_rows), own // block_size].astype(np.int64) * block_size + own % block_size
    rows = DecodeRows(
        block_table=torch.from_numpy(table),
        starts=torch.from_numpy(starts),
        ends=torch.from_numpy(ends),
        block_size=block_size,
        most_visible=int((ends - starts).max()),
    )
    return rows, own_slots


def _cache_rows(chunk: Chunk, block_size: int) -> npt.NDArray[np.int64]:
    """[end]: of the sequence's positions up to the chunk's end."""
    blocks = np.array(chunk.sequence.blocks, dtype=np.int64)
    rows: npt.NDArray[np.int64] = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return rows[: chunk.end]


def prefill_mask(
    start: int, end: int, sliding_window: int | None, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """What the positions start .. end - 1 see: [end - start, end] bool, None where it is the plain causal triangle."""
    is_windowed = sliding_window is not None and end > sliding_window
    if start == 0 and not is_windowed:
        return None
    query = torch.arange(start, end, device=device)[:, None]
    key = torch.arange(end, device=device)[None]
    visible = key <= query
    if is_windowed:
        assert sliding_window is not None
        visible &= key > query - sliding_window
    return visible


def _to_device(rows: DecodeRows, device: torch.device) -> DecodeRows:
    """On CUDA in copies that nobody waits for."""
    if device.type == "cpu":
        return rows
    edges = to_device(torch.stack((rows.starts, rows.ends)), device)
    return replace(rows, block_table=to_device(rows.block_table, device), starts=edges[0], ends=edges[1])
