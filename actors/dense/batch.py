"""One step's chunks as tensors.

Legend: T tokens in the step, B decoding rows, S longest context among them.

The step's rows are the chunks one after the other, those of one token (decode) first:

    rows      | d0 | d1 | d2 | p0 p0 p0 p0 | p1 p1 p1 |
    decode      one gathered attention      one attention per prefill chunk

A decoding chunk with drafts is a row for its token and one for each draft: for the attention sequences of their own, each
a position longer than the one before, in the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from actors.dense.scheduler import Chunk
from actors.dense.to_device import to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRows:
    """The first B rows: one token each, seen by no other row but drafts that follow it."""

    slots: torch.Tensor
    """[B, S] int64: cache rows of the positions 0 .. S - 1 of each row's sequence. Positions that the row does not see
    repeat its own, so that no row of another sequence is ever touched: masking alone would not cure 0 * NaN."""
    visible: torch.Tensor
    """[B, 1, 1, S] bool: positions up to the row's own and inside the window."""
    starts: torch.Tensor
    """[B] int64, on the host: the first visible position."""
    ends: torch.Tensor
    """[B] int64, on the host: the position behind the last visible one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedRows:
    """The same for a kernel that finds a sequence's cache rows by its blocks."""

    block_table: torch.Tensor
    """[B, M] int32: each row's blocks in order of position; what lies behind its end is not read."""
    starts: torch.Tensor
    """[B] int32: the first visible position."""
    ends: torch.Tensor
    """[B] int32: the position behind the last visible one; 0 for a row that only pads the batch."""
    block_size: int
    most_visible: int
    """The most positions that a row sees, or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRows:
    """Rows `first_row` .. `first_row + end - start - 1`: positions start .. end - 1 of one sequence."""

    first_row: int
    start: int
    end: int
    slots: torch.Tensor
    """[end] int64: cache rows of positions 0 .. end - 1."""
    visible: torch.Tensor | None
    """[end - start, end] bool; None where it is the plain causal triangle (start 0, nothing outside the window), and where
    decoding rows are PagedRows: their device's attention knows the window itself."""


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
    decode: DecodeRows | PagedRows | None
    prefills: tuple[PrefillRows, ...]


def build_batch(
    chunks: list[Chunk],
    block_size: int,
    sliding_window: int | None,
    device: torch.device,
    is_paged: bool = False,
) -> StepBatch:
    """Lay out the chunks, of which those of one token must come first. is_paged: for attention by block table."""
    decodes = [chunk for chunk in chunks if chunk.num_tokens == 1]
    assert chunks[: len(decodes)] == decodes
    token_ids: list[int] = []
    positions: list[int] = []
    is_long: list[int] = []
    for chunk in chunks:
        token_ids += [*chunk.sequence.token_ids(chunk.start, chunk.end), *chunk.drafts]
        positions += range(chunk.start, chunk.start + chunk.num_rows)
        is_long += [int(chunk.sequence.is_long)] * chunk.num_rows
    decode: DecodeRows | PagedRows | None = None
    slots: list[torch.Tensor] = []
    if decodes:
        decode, own_slots = (_paged_rows if is_paged else _decode_rows)(decodes, block_size, sliding_window)
        slots.append(own_slots)
    prefills: list[PrefillRows] = []
    row = sum(chunk.num_rows for chunk in decodes)
    for chunk in chunks[len(decodes) :]:
        prefill = _prefill_rows(chunk, row, block_size, sliding_window, is_paged)
        prefills.append(prefill)
        slots.append(prefill.slots[chunk.start :])
        row += chunk.num_tokens
    return _to_device(
        StepBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            is_long=torch.tensor(is_long),
            slots=torch.cat(slots),
            decode=decode,
            prefills=tuple(prefills),
        ),
        device,
    )


def _decode_rows(
    chunks: list[Chunk], block_size: int, sliding_window: int | None
) -> tuple[DecodeRows, torch.Tensor]:
    """The rows, and the cache row of each one's own position."""
    blocks, ends = _blocks(chunks), _ends(chunks)[:, None]
    longest = int(ends.max())
    slots = (blocks[:, :, None] * block_size + torch.arange(block_size)).flatten(1)[:, :longest]
    position = torch.arange(longest)[None]
    visible = position < ends
    if sliding_window is not None:
        visible &= position >= ends - sliding_window
    slots = torch.where(visible, slots, slots.gather(1, ends - 1))
    starts = torch.zeros_like(ends) if sliding_window is None else (ends - sliding_window).clamp_min(0)
    rows = DecodeRows(
        slots=slots, visible=visible[:, None, None], starts=starts.flatten(), ends=ends.flatten()
    )
    return rows, slots.gather(1, ends - 1)[:, 0]


def _paged_rows(
    chunks: list[Chunk], block_size: int, sliding_window: int | None
) -> tuple[PagedRows, torch.Tensor]:
    """As _decode_rows."""
    blocks, ends = _blocks(chunks), _ends(chunks)
    starts = torch.zeros_like(ends) if sliding_window is None else (ends - sliding_window).clamp_min(0)
    own = ends - 1
    own_blocks = blocks.gather(1, (own // block_size)[:, None])[:, 0]
    rows = PagedRows(
        block_table=blocks.int(),
        starts=starts.int(),
        ends=ends.int(),
        block_size=block_size,
        most_visible=int((ends - starts).max()),
    )
    return rows, own_blocks * block_size + own % block_size


def _blocks(chunks: list[Chunk]) -> torch.Tensor:
    """[B, M] int64: blocks of each decoding row's sequence, filled up with zeros."""
    num_blocks = max(len(chunk.sequence.blocks) for chunk in chunks)
    blocks = torch.tensor([c.sequence.blocks + [0] * (num_blocks - len(c.sequence.blocks)) for c in chunks])
    if any(chunk.drafts for chunk in chunks):
        blocks = blocks.repeat_interleave(torch.tensor([chunk.num_rows for chunk in chunks]), dim=0)
    return blocks


def _ends(chunks: list[Chunk]) -> torch.Tensor:
    """[B] int64: the position behind each decoding row's own."""
    return torch.tensor([chunk.end + index for chunk in chunks for index in range(chunk.num_rows)])


def _prefill_rows(
    chunk: Chunk, row: int, block_size: int, sliding_window: int | None, is_paged: bool
) -> PrefillRows:
    blocks = torch.tensor(chunk.sequence.blocks)
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[: chunk.end]
    visible = None if is_paged else prefill_mask(chunk.start, chunk.end, sliding_window)
    return PrefillRows(first_row=row, start=chunk.start, end=chunk.end, slots=slots, visible=visible)


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


def _to_device(batch: StepBatch, device: torch.device) -> StepBatch:
    """On CUDA in copies that nobody waits for."""
    if device.type == "cpu":
        return batch
    token_ids, positions, is_long, slots = to_device(
        torch.stack((batch.token_ids, batch.positions, batch.is_long, batch.slots)), device
    )
    return StepBatch(
        token_ids=token_ids,
        positions=positions,
        is_long=is_long,
        slots=slots,
        decode=batch.decode and _decode_to_device(batch.decode, device),
        prefills=tuple(
            replace(
                prefill,
                slots=to_device(prefill.slots, device),
                visible=None if prefill.visible is None else to_device(prefill.visible, device),
            )
            for prefill in batch.prefills
        ),
    )


def _decode_to_device(rows: DecodeRows | PagedRows, device: torch.device) -> DecodeRows | PagedRows:
    if isinstance(rows, DecodeRows):
        return replace(rows, slots=to_device(rows.slots, device), visible=to_device(rows.visible, device))
    edges = to_device(torch.stack((rows.starts, rows.ends)), device)
    return replace(rows, block_table=to_device(rows.block_table, device), starts=edges[0], ends=edges[1])
