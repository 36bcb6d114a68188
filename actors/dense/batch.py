"""One step's chunks as tensors.

Legend: T tokens in the step, B decoding rows, S longest context among them.

The step's rows are the chunks one after the other, the narrow ones first:

    rows      | d0 | d1 | d2 d2 d2 | p0 p0 p0 p0 | p1 p1 p1 |
    decode      one attention for all narrow chunks, one attention per wide one

A narrow chunk is one token (a sequence that decodes) or those of a prompt that the model takes the same way. Each of its
tokens and drafts is a decoding row: for the attention sequences of their own, each a position longer than the one before, in
the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from actors.dense.scheduling.scheduler import Chunk
from actors.gpu.host_to_device import to_device

IsShort: TypeAlias = Callable[[Chunk], bool]

_Numbers: TypeAlias = npt.NDArray[np.int64]

_INT32_BYTES = 4
_ALIGNED_INT32 = 4
"""So many of them are 16 bytes."""


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

    def to(self, device: torch.device) -> DecodeRows:
        """On the device, in one copy."""
        if device.type == "cpu":
            return self
        num_rows, places = len(self.ends), aligned_places(len(self.ends))
        numbers = torch.zeros(2 * places + self.block_table.numel(), dtype=torch.int32)
        numbers[:num_rows], numbers[places : places + num_rows] = self.starts, self.ends
        numbers[2 * places :] = self.block_table.flatten()
        there = to_device(numbers, device)
        return replace(
            self,
            block_table=there[2 * places :].view(self.block_table.shape),
            starts=there[:num_rows],
            ends=there[places : places + num_rows],
        )

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


Prefill: TypeAlias = Callable[[PrefillRows, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The attention of one chunk: (rows, queries [T, A, D], keys [S, G, D], values [S, G, D]) -> [T, A * D], with S the chunk's
context, A query heads, G key-value heads, D the head dimension."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What the model needs for one step."""

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

    def to(self, device: torch.device) -> StepBatch:
        """On the device."""
        if device.type == "cpu":
            return self
        numbers = torch.stack((self.token_ids, self.positions, self.is_long, self.slots))
        token_ids, positions, is_long, slots = to_device(numbers, device)
        return StepBatch(
            token_ids=token_ids,
            positions=positions,
            is_long=is_long,
            slots=slots,
            decode=None if self.decode is None else self.decode.to(device),
            prefills=tuple(
                replace(prefill, slots=to_device(prefill.slots, device)) for prefill in self.prefills
            ),
        )


def has_one_token(chunk: Chunk) -> bool:
    """What every model takes as a decoding row."""
    return chunk.num_tokens == 1


def build_batch(
    chunks: list[Chunk],
    block_size: int,
    sliding_window: int | None,
    is_short: IsShort = has_one_token,
) -> StepBatch:
    """Lay out the chunks, of which the narrow ones must come first, on the host."""
    short_chunks = list(takewhile(is_short, chunks))
    long_chunks = chunks[len(short_chunks) :]
    assert not any(map(is_short, long_chunks))
    counts = [chunk.num_rows for chunk in chunks]
    first_rows = list(accumulate(counts, initial=0))
    positions, is_long = _positions(chunks, counts, first_rows)
    slots: list[_Numbers] = []
    decode: DecodeRows | None = None
    if short_chunks:
        table = _block_table(short_chunks, counts)
        own = positions[: len(table)]
        slots.append(_own_slots(table, own, block_size))
        decode = _decode_rows(table, own, block_size, sliding_window)
    prefills: list[PrefillRows] = []
    for chunk, first_row in zip(long_chunks, first_rows[len(short_chunks) :], strict=False):
        context = _cache_rows(chunk, block_size)
        slots.append(context[chunk.start :])
        prefills.append(
            PrefillRows(
                first_row=first_row,
                start=chunk.start,
                end=chunk.end,
                slots=torch.from_numpy(context),
                sliding_window=sliding_window,
            )
        )
    numbers = np.array((_token_ids(chunks), positions, is_long, np.concatenate(slots)))
    columns = torch.from_numpy(numbers)
    return StepBatch(
        token_ids=columns[0],
        positions=columns[1],
        is_long=columns[2],
        slots=columns[3],
        decode=decode,
        prefills=tuple(prefills),
    )


def _positions(chunks: list[Chunk], counts: list[int], first_rows: list[int]) -> tuple[_Numbers, _Numbers]:
    """[T] each, for chunks of so many rows that begin at these, with T behind them: positions, and 1 for the long list."""
    shifts = [chunk.start - row for chunk, row in zip(chunks, first_rows, strict=False)]
    is_long = [chunk.sequence.is_long for chunk in chunks]
    repeated = np.repeat(np.array((shifts, is_long), dtype=np.int64), counts, axis=1)
    return np.arange(first_rows[-1]) + repeated[0], repeated[1]


def _token_ids(chunks: list[Chunk]) -> _Numbers:
    """[T]."""
    token_ids: list[int] = []
    for chunk in chunks:
        token_ids += chunk.sequence.token_ids(chunk.start, chunk.end)
        token_ids += chunk.drafts
    return np.array(token_ids)


def _block_table(chunks: list[Chunk], counts: list[int]) -> npt.NDArray[np.int32]:
    """[B, M] for narrow chunks of so many rows, the shorter ones filled up with 0.

    Rows are put together as bytes: one copy of each, where NumPy takes a call for each.
    """
    held = [chunk.sequence.blocks for chunk in chunks]
    num_bytes = max(map(len, held)) * _INT32_BYTES
    rows = [
        blocks.tobytes().ljust(num_bytes, b"\0") * count for blocks, count in zip(held, counts, strict=False)
    ]
    return np.frombuffer(bytearray().join(rows), dtype=np.int32).reshape(-1, num_bytes // _INT32_BYTES)


def _own_slots(table: npt.NDArray[np.int32], own: _Numbers, block_size: int) -> _Numbers:
    """[B]: the cache row of each row's own position."""
    own_blocks = table[np.arange(len(own)), own // block_size].astype(np.int64)
    return own_blocks * block_size + own % block_size


def _decode_rows(
    table: npt.NDArray[np.int32], own: _Numbers, block_size: int, sliding_window: int | None
) -> DecodeRows:
    """Of rows with these own positions [B]."""
    ends = (own + 1).astype(np.int32)
    starts = np.zeros_like(ends) if sliding_window is None else np.maximum(ends - sliding_window, 0)
    return DecodeRows(
        block_table=torch.from_numpy(table),
        starts=torch.from_numpy(starts),
        ends=torch.from_numpy(ends),
        block_size=block_size,
        most_visible=int((ends - starts).max()),
    )


def aligned_places(num_rows: int) -> int:
    """Places of int32 for so many rows, so that what follows begins at a multiple of 16 bytes: kernels are compiled once more
    for addresses that do not."""
    return -(-num_rows // _ALIGNED_INT32) * _ALIGNED_INT32


def _cache_rows(chunk: Chunk, block_size: int) -> _Numbers:
    """[end]: of the sequence's positions up to the chunk's end."""
    blocks = np.array(chunk.sequence.blocks, dtype=np.int64)
    rows: _Numbers = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
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
