"""One step's chunks as tensors.

Legend: T tokens in the step, B decoding rows, S longest context among them, M most blocks of a sequence among
them.

The step's rows are the chunks one after the other; the short chunks come first:

    rows      | d0 | d1 | d2 d2 d2 | p0 p0 p0 p0 | p1 p1 p1 |
    decode      one attention for all short chunks, one attention for each long chunk

A short chunk is one token of a sequence that decodes, or the tokens of a prompt that the model computes in
the same way. Each of its tokens and drafts is a decoding row. The attention treats these rows as separate
sequences in the same blocks; each is one position longer than the row before.
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
"""Number of int32 values in 16 bytes."""


@dataclass(frozen=True, kw_only=True)
class DecodeRows:
    """The first B rows of a step, with one token or draft each. Kernels find a sequence's cache rows by its
    blocks, and write the keys and values of all rows before they read any."""

    block_table: torch.Tensor
    """[B, M] int32: each row's blocks in order of position. Entries after the row's end are not read."""
    starts: torch.Tensor
    """[B] int32: the first visible position."""
    ends: torch.Tensor
    """[B] int32: the position after the last visible one; 0 for a row that only pads the batch."""
    block_size: int
    most_visible: int
    """Upper bound of the number of positions that any row sees."""

    def to(self, device: torch.device) -> DecodeRows:
        """A copy on the device, made by one transfer."""
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
        """Cache rows [B, S] int64 of the positions 0 .. S - 1 of each row's sequence, and a mask [B, 1, 1, S]
        bool of the positions that the row sees. They are for an attention that copies what it reads.

        If a row does not see a position, the row's own position stands in its place, so that no cache row
        of another sequence is ever read. Masking alone is not enough, because 0 * NaN is NaN.
        """
        offsets = torch.arange(self.block_size, device=self.block_table.device)
        slots = (self.block_table.long()[:, :, None] * self.block_size + offsets).flatten(1)
        starts, ends = self.starts.long()[:, None], self.ends.long()[:, None]
        position = torch.arange(slots.shape[1], device=slots.device)[None]
        visible = (position < ends) & (position >= starts)
        slots = torch.where(visible, slots, slots.gather(1, ends - 1))
        return slots, visible[:, None, None]


@dataclass(frozen=True, kw_only=True)
class PrefillRows:
    """The rows `first_row` .. `first_row + end - start - 1` of a step: positions start .. end - 1 of one
    sequence."""

    first_row: int
    start: int
    end: int
    slots: torch.Tensor
    """[end] int64: cache rows of positions 0 .. end - 1."""
    sliding_window: int | None

    @cached_property
    def visible(self) -> torch.Tensor | None:
        """The mask [end - start, end] bool for an attention that does not know the window itself; None for
        the plain causal triangle (start 0, nothing outside the window)."""
        return prefill_mask(self.start, self.end, self.sliding_window, self.slots.device)


Prefill: TypeAlias = Callable[[PrefillRows, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The attention of one chunk: (rows, queries [T, A, D], keys [S, G, D], values [S, G, D]) -> [T, A * D]. S is
the chunk's context, A the number of query heads, G of key-value heads, and D the head dimension."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """The input of the model for one step."""

    token_ids: torch.Tensor
    """[T] int64."""
    positions: torch.Tensor
    """[T] int64."""
    is_long: torch.Tensor
    """[T] int64: 1 if the row's sequence uses LongRoPE's long list, else 0."""
    slots: torch.Tensor
    """[T] int64: the cache row for each token's key and value."""
    decode: DecodeRows | None
    prefills: tuple[PrefillRows, ...]

    def to(self, device: torch.device) -> StepBatch:
        """A copy on the device."""
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
    """Whether the chunk has one token, so that every model computes it as a decoding row."""
    return chunk.num_tokens == 1


def build_batch(
    chunks: list[Chunk],
    block_size: int,
    sliding_window: int | None,
    is_short: IsShort = has_one_token,
) -> StepBatch:
    """Lay out the chunks on the host. Short chunks must come first."""
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
    """Positions [T] and long-list flags [T] of all rows. `counts` has the number of rows of each chunk,
    `first_rows` the first row of each chunk and then T."""
    shifts = [chunk.start - row for chunk, row in zip(chunks, first_rows, strict=False)]
    is_long = [chunk.sequence.is_long for chunk in chunks]
    repeated = np.repeat(np.array((shifts, is_long), dtype=np.int64), counts, axis=1)
    return np.arange(first_rows[-1]) + repeated[0], repeated[1]


def _token_ids(chunks: list[Chunk]) -> _Numbers:
    """Token ids [T] of all rows."""
    token_ids: list[int] = []
    for chunk in chunks:
        token_ids += chunk.sequence.token_ids(chunk.start, chunk.end)
        token_ids += chunk.drafts
    return np.array(token_ids)


def _block_table(chunks: list[Chunk], counts: list[int]) -> npt.NDArray[np.int32]:
    """The block table [B, M] of short chunks with `counts` rows each; shorter rows are filled up with 0.

    Rows are put together as bytes, which takes one copy per row; NumPy would take one call per row.
    """
    held = [chunk.sequence.blocks for chunk in chunks]
    num_bytes = max(map(len, held)) * _INT32_BYTES
    rows = [
        blocks.tobytes().ljust(num_bytes, b"\0") * count for blocks, count in zip(held, counts, strict=False)
    ]
    return np.frombuffer(bytearray().join(rows), dtype=np.int32).reshape(-1, num_bytes // _INT32_BYTES)


def _own_slots(table: npt.NDArray[np.int32], own: _Numbers, block_size: int) -> _Numbers:
    """The cache row [B] of each row's own position."""
    own_blocks = table[np.arange(len(own)), own // block_size].astype(np.int64)
    return own_blocks * block_size + own % block_size


def _decode_rows(
    table: npt.NDArray[np.int32], own: _Numbers, block_size: int, sliding_window: int | None
) -> DecodeRows:
    """Decoding rows whose own positions are `own` [B]."""
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
    """Row count rounded up so that the next int32 array is 16-byte aligned; Triton compiles a second kernel
    for unaligned pointers."""
    return -(-num_rows // _ALIGNED_INT32) * _ALIGNED_INT32


def _cache_rows(chunk: Chunk, block_size: int) -> _Numbers:
    """Cache rows [end] of the sequence's positions up to the chunk's end."""
    blocks = np.array(chunk.sequence.blocks, dtype=np.int64)
    rows: _Numbers = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return rows[: chunk.end]


def prefill_mask(
    start: int, end: int, sliding_window: int | None, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """The mask [end - start, end] bool of what positions start .. end - 1 see; None for the plain causal
    triangle."""
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
