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
class PrefillRows:
    """Rows `first_row` .. `first_row + end - start - 1`: positions start .. end - 1 of one sequence."""

    first_row: int
    start: int
    end: int
    slots: torch.Tensor
    """[end] int64: cache rows of positions 0 .. end - 1."""
    visible: torch.Tensor | None
    """[end - start, end] bool; None where it is the plain causal triangle (start 0, nothing outside the window)."""


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


def build_batch(
    chunks: list[Chunk], block_size: int, sliding_window: int | None, device: torch.device
) -> StepBatch:
    """Lay out the chunks, of which those of one token must come first."""
    decodes = [chunk for chunk in chunks if chunk.num_tokens == 1]
    assert chunks[: len(decodes)] == decodes
    token_ids: list[int] = []
    positions: list[int] = []
    is_long: list[int] = []
    for chunk in chunks:
        token_ids += [*chunk.sequence.token_ids(chunk.start, chunk.end), *chunk.drafts]
        positions += range(chunk.start, chunk.start + chunk.num_rows)
        is_long += [int(chunk.sequence.is_long)] * chunk.num_rows
    decode = _decode_rows(decodes, block_size, sliding_window) if decodes else None
    prefills: list[PrefillRows] = []
    slots = [] if decode is None else [_own_slots(decode)]
    row = sum(chunk.num_rows for chunk in decodes)
    for chunk in chunks[len(decodes) :]:
        prefill = _prefill_rows(chunk, row, block_size, sliding_window)
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


def _decode_rows(chunks: list[Chunk], block_size: int, sliding_window: int | None) -> DecodeRows:
    num_blocks = max(len(chunk.sequence.blocks) for chunk in chunks)
    blocks = torch.tensor([c.sequence.blocks + [0] * (num_blocks - len(c.sequence.blocks)) for c in chunks])
    ends = torch.tensor([chunk.end + index for chunk in chunks for index in range(chunk.num_rows)])[:, None]
    longest = int(ends.max())
    slots = (blocks[:, :, None] * block_size + torch.arange(block_size)).flatten(1)[:, :longest]
    if len(ends) > len(chunks):
        slots = slots.repeat_interleave(torch.tensor([chunk.num_rows for chunk in chunks]), dim=0)
    position = torch.arange(longest)[None]
    visible = position < ends
    if sliding_window is not None:
        visible &= position >= ends - sliding_window
    slots = torch.where(visible, slots, slots.gather(1, ends - 1))
    starts = torch.zeros_like(ends) if sliding_window is None else (ends - sliding_window).clamp_min(0)
    return DecodeRows(
        slots=slots, visible=visible[:, None, None], starts=starts.flatten(), ends=ends.flatten()
    )


def _own_slots(decode: DecodeRows) -> torch.Tensor:
    return decode.slots.gather(1, decode.ends[:, None] - 1)[:, 0]


def _prefill_rows(chunk: Chunk, row: int, block_size: int, sliding_window: int | None) -> PrefillRows:
    blocks = torch.tensor(chunk.sequence.blocks)
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[: chunk.end]
    visible = None
    is_windowed = sliding_window is not None and chunk.end > sliding_window
    if chunk.start > 0 or is_windowed:
        query = torch.arange(chunk.start, chunk.end)[:, None]
        key = torch.arange(chunk.end)[None]
        visible = key <= query
        if is_windowed:
            assert sliding_window is not None
            visible &= key > query - sliding_window
    return PrefillRows(first_row=row, start=chunk.start, end=chunk.end, slots=slots, visible=visible)


def _to_device(batch: StepBatch, device: torch.device) -> StepBatch:
    if device.type == "cpu":
        return batch
    decode = batch.decode
    return StepBatch(
        token_ids=batch.token_ids.to(device),
        positions=batch.positions.to(device),
        is_long=batch.is_long.to(device),
        slots=batch.slots.to(device),
        decode=decode and replace(decode, slots=decode.slots.to(device), visible=decode.visible.to(device)),
        prefills=tuple(
            PrefillRows(
                first_row=p.first_row,
                start=p.start,
                end=p.end,
                slots=p.slots.to(device),
                visible=None if p.visible is None else p.visible.to(device),
            )
            for p in batch.prefills
        ),
    )
