"""Products of few rows with the experts that they chose; weights of no other expert are read.

Legend: T tokens, H hidden, K experts per token, F expert width, S slots, N = T * K entries (token, choice).

    sort       entries by slot, then by position, in one program: order [N], targets [N], ends [S]
    first      w2's inputs [N, F] = silu(w1 x) * (w3 x), in that order; x is gathered as it is read
    second     results = (w2 ...) * weight, each at its entry's place

A program takes some rows of one slot and some outputs. How many row blocks a slot has is known on the device alone, so
there are as many programs as could be needed, and the others end at once: nobody asks the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MOST_ENTRIES = 1024
"""That one program sorts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """Sizes of the matrices that a program multiplies at a time."""

    rows: int
    outputs: int
    inputs: int
    first_stages: int
    """Tiles under way at once in the first product, which has two weights per output."""
    second_stages: int


def choose_tiles(num_entries: int, num_slots: int, item_bytes: int) -> Tiles:
    """Few rows per slot: all that counts is how many bytes of weights are under way. More: weights are shared by rows."""
    inputs = 256 // item_bytes
    if num_entries <= 2 * num_slots:
        return Tiles(rows=16, outputs=32, inputs=inputs, first_stages=3, second_stages=5)
    if num_entries <= 16 * num_slots:
        return Tiles(rows=32, outputs=64, inputs=inputs // 2, first_stages=3, second_stages=4)
    return Tiles(rows=64, outputs=64, inputs=inputs // 2, first_stages=3, second_stages=4)


def few_rows(
    rows: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    num_results: int,
    slots: torch.Tensor,
    stacks: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Results [num_results, H] as `GroupedExperts.forward`, for at most MOST_ENTRIES entries.

    slots [E + 1] int64: expert id -> slot, with id -1 at the end. stacks: gate_up [S, 2F, H] and down [S, H, F]. Where fewer
    entries are valid than num_results says, the last results are left as they are.
    """
    gate_up, down = stacks
    num_slots, hidden, width = down.shape
    num_choices = expert_ids.shape[1]
    num_entries = expert_ids.numel()
    padded_slots = triton.next_power_of_2(num_slots)
    order, targets = (torch.empty(num_entries, dtype=torch.int32, device=rows.device) for _ in range(2))
    ends = torch.empty(num_slots, dtype=torch.int32, device=rows.device)
    _sort[(1,)](
        expert_ids.contiguous(),
        slots,
        order,
        targets,
        ends,
        num_entries,
        NUM_EXPERTS=slots.shape[0] - 1,
        NUM_SLOTS=num_slots,
        SLOTS=padded_slots,
        ENTRIES=max(16, triton.next_power_of_2(num_entries)),
        num_warps=8,
    )
    tiles = choose_tiles(num_entries, num_slots, rows.element_size())
    num_blocks = min(num_entries, num_slots) + num_entries // tiles.rows
    between = torch.empty((num_entries, width), dtype=rows.dtype, device=rows.device)
    _first[(num_blocks, triton.cdiv(width, tiles.outputs))](
        rows.contiguous(),
        gate_up,
        order,
        ends,
        between,
        NUM_CHOICES=num_choices,
        NUM_INPUTS=hidden,
        NUM_OUTPUTS=width,
        NUM_SLOTS=num_slots,
        SLOTS=padded_slots,
        ROWS=tiles.rows,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.inputs,
        num_warps=4,
        num_stages=tiles.first_stages,
    )
    results = torch.empty((num_results, hidden), dtype=rows.dtype, device=rows.device)
    _second[(num_blocks, triton.cdiv(hidden, tiles.outputs))](
        between,
        down,
        order,
        targets,
        ends,
        weights.contiguous(),
        results,
        NUM_INPUTS=width,
        NUM_OUTPUTS=hidden,
        NUM_SLOTS=num_slots,
        SLOTS=padded_slots,
        ROWS=tiles.rows,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.inputs,
        num_warps=4,
        num_stages=tiles.second_stages,
    )
    return results


@triton.jit
def _sort(
    expert_ids,
    slots,
    order,
    targets,
    ends,
    num_entries,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    entry = tl.arange(0, ENTRIES)
    expert = tl.load(expert_ids + entry, mask=entry < num_entries, other=-1)
    slot = tl.load(slots + tl.where(expert < 0, NUM_EXPERTS, expert))
    slot = tl.where(expert < 0, -1, slot).to(tl.int32)
    number = tl.arange(0, SLOTS)
    is_there = (slot[:, None] == number[None, :]).to(tl.int32)
    counts = tl.sum(is_there, axis=0)
    slot_ends = tl.cumsum(counts, axis=0)
    # Of the entries of its slot, the entry is the so many-th; the slot begins where the one before it ends.
    nth = tl.cumsum(is_there, axis=0) - 1
    place = tl.sum(is_there * (nth + (slot_ends - counts)[None, :]), axis=1)
    is_here = slot >= 0
    target = tl.cumsum(is_here.to(tl.int32), axis=0) - 1
    tl.store(order + place, entry, mask=is_here)
    tl.store(targets + place, target, mask=is_here)
    tl.store(ends + number, slot_ends, mask=number < NUM_SLOTS)


@triton.jit
def _block(ends, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """(slot, first row, end of the slot's rows) of this program's row block; slot SLOTS or more where there is none."""
    number = tl.arange(0, SLOTS)
    end = tl.load(ends + number, mask=number < NUM_SLOTS, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < NUM_SLOTS), other=0)
    blocks = tl.cdiv(end - start, ROWS)
    block_ends = tl.cumsum(blocks, axis=0)
    block = tl.program_id(0)
    slot = tl.sum((block_ends <= block).to(tl.int32), axis=0)
    is_slot = number == slot
    first = tl.sum(tl.where(is_slot, start + (block - (block_ends - blocks)) * ROWS, 0), axis=0)
    return slot, first, tl.sum(tl.where(is_slot, end, 0), axis=0)


@triton.jit
def _first(
    rows,
    gate_up,
    order,
    ends,
    between,
    NUM_CHOICES: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    slot, first, end = _block(ends, NUM_SLOTS, SLOTS, ROWS)
    if slot >= SLOTS:
        return
    row = first + tl.arange(0, ROWS)
    is_row = row < end
    token = tl.load(order + row, mask=is_row, other=0) // NUM_CHOICES
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = output < NUM_OUTPUTS
    x_at = rows + token.to(tl.int64)[:, None] * NUM_INPUTS
    gate_at = gate_up + slot.to(tl.int64) * (2 * NUM_OUTPUTS * NUM_INPUTS) + output[:, None] * NUM_INPUTS
    up_at = gate_at + NUM_OUTPUTS * NUM_INPUTS
    gate = tl.zeros((ROWS, OUTPUTS), tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = (at < NUM_INPUTS)[None, :]
        x = tl.load(x_at + at[None, :], mask=is_row[:, None] & is_input, other=0.0)
        w_gate = tl.load(gate_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        w_up = tl.load(up_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        gate = tl.dot(x, tl.trans(w_gate), gate, input_precision="ieee")
        up = tl.dot(x, tl.trans(w_up), up, input_precision="ieee")
    # Rounded where torch rounds, whose products have the rows' dtype.
    kind = between.dtype.element_ty
    gate = gate.to(kind).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    result = (gate * up.to(kind).to(tl.float32)).to(kind)
    out = between + row.to(tl.int64)[:, None] * NUM_OUTPUTS + output[None, :]
    tl.store(out, result, mask=is_row[:, None] & is_output[None, :])


@triton.jit
def _second(
    between,
    down,
    order,
    targets,
    ends,
    weights,
    results,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    slot, first, end = _block(ends, NUM_SLOTS, SLOTS, ROWS)
    if slot >= SLOTS:
        return
    row = first + tl.arange(0, ROWS)
    is_row = row < end
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = output < NUM_OUTPUTS
    x_at = between + row.to(tl.int64)[:, None] * NUM_INPUTS
    w_at = down + slot.to(tl.int64) * (NUM_OUTPUTS * NUM_INPUTS) + output[:, None] * NUM_INPUTS
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = (at < NUM_INPUTS)[None, :]
        x = tl.load(x_at + at[None, :], mask=is_row[:, None] & is_input, other=0.0)
        w = tl.load(w_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    kind = results.dtype.element_ty
    weight = tl.load(weights + tl.load(order + row, mask=is_row, other=0), mask=is_row, other=0.0)
    result = (total.to(kind).to(tl.float32) * weight[:, None]).to(kind)
    target = tl.load(targets + row, mask=is_row, other=0).to(tl.int64)
    out = results + target[:, None] * NUM_OUTPUTS + output[None, :]
    tl.store(out, result, mask=is_row[:, None] & is_output[None, :])
