"""Multiplies rows by the matrices of the experts that they chose, and reads the weights of no other expert.

Legend: T tokens, H hidden, K experts per token, F expert width, S slots, N = T * K entries (token, choice),
C inputs that share a scale.

    first      computes w2's inputs [N, F] = silu(w1 x) * (w3 x), in the order of `sort.py`, and gathers x
    second     computes results = (w2 ...) * weight, each at its entry's target

A program takes some rows of one slot and some outputs. Only the device knows how many row blocks a slot has,
and asking it would make the host wait. So the launch has as many programs as could be needed, and those
without a block end at once.

Quantized weights are converted to the rows' dtype, which holds them exactly, when they are multiplied; the
sums over C inputs are then scaled in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from actors.gpu.experts.sort import Entries
from actors.gpu.experts.stacks import Stack, Stacks
from actors.gpu.experts.tiles import Tile, choose_tiles


def products(
    rows: torch.Tensor,
    entries: Entries,
    weights: torch.Tensor,
    num_results: int,
    targets: torch.Tensor,
    stacks: Stacks,
) -> torch.Tensor:
    """Return the weighed results [num_results, H]; the result of the entry at each place is at its target.

    rows [T, H], weights [T, K], targets [N]. If fewer entries are valid than `num_results`, the other results
    are not written.
    """
    between = first_products(rows, entries, stacks)
    _, tile = _tiles(rows, entries, stacks)
    results = torch.empty((num_results, rows.shape[1]), dtype=rows.dtype, device=rows.device)
    _second[_grid(entries, results.shape[1], tile)](
        between,
        stacks.down.values,
        stacks.down.scales,
        entries.order,
        targets,
        entries.ends,
        weights.contiguous(),
        results,
        **_sizes(stacks.down, results.shape[1], tile),
    )
    return results


def first_products(rows: torch.Tensor, entries: Entries, stacks: Stacks) -> torch.Tensor:
    """Return silu(w1 x) * (w3 x) [N, F] for rows [T, H], each at its entry's place."""
    tile, _ = _tiles(rows, entries, stacks)
    width = stacks.down.values.shape[2]
    between = torch.empty((len(entries.order), width), dtype=rows.dtype, device=rows.device)
    _first[_grid(entries, width, tile)](
        rows.contiguous(),
        stacks.gate_up.values,
        stacks.gate_up.scales,
        entries.order,
        entries.ends,
        between,
        NUM_CHOICES=entries.num_choices,
        **_sizes(stacks.gate_up, width, tile),
    )
    return between


def _tiles(rows: torch.Tensor, entries: Entries, stacks: Stacks) -> tuple[Tile, Tile]:
    num_entries, num_slots = len(entries.order), stacks.num_slots
    return choose_tiles(num_entries, num_slots, rows.element_size(), stacks.is_quantized)


def _grid(entries: Entries, num_outputs: int, tile: Tile) -> tuple[int, int]:
    """Return the largest possible number of row blocks and the number of output blocks."""
    num_entries = len(entries.order)
    num_blocks = min(num_entries, entries.num_slots) + num_entries // tile.rows
    return num_blocks, triton.cdiv(num_outputs, tile.outputs)


def _sizes(stack: Stack, num_outputs: int, tile: Tile) -> dict[str, Any]:
    """Return the constants for which a kernel is compiled. The inputs of a tile share a scale."""
    num_slots, _, num_inputs = stack.values.shape
    per_scale = stack.num_inputs_per_scale
    return {
        "NUM_INPUTS": num_inputs,
        "NUM_OUTPUTS": num_outputs,
        "NUM_SLOTS": num_slots,
        "SLOTS": triton.next_power_of_2(num_slots),
        "PER_SCALE": per_scale,
        "ROWS": tile.rows,
        "OUTPUTS": tile.outputs,
        "INPUTS": _largest_within(tile.inputs, per_scale) if stack.is_grouped else tile.inputs,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "IS_GROUPED": stack.is_grouped,
    }


def _largest_within(most: int, per_scale: int) -> int:
    """Return the largest power of two up to `most` that divides `per_scale`, which is a multiple of 32."""
    while per_scale % most:
        most //= 2
    return most


@triton.jit
def _block(ends, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """Return slot, first row and end of the slot's rows for this program's row block.

    The slot is SLOTS or more if the program has no row block.
    """
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
    scales,
    order,
    ends,
    between,
    NUM_CHOICES: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    PER_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
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
    if PER_SCALE > 0:
        gate_scales = scales + (slot * (2 * NUM_OUTPUTS) + output) * (NUM_INPUTS // PER_SCALE)
    gate = tl.zeros((ROWS, OUTPUTS), tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = (at < NUM_INPUTS)[None, :]
        x = tl.load(x_at + at[None, :], mask=is_row[:, None] & is_input, other=0.0)
        w_gate = tl.load(gate_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        w_up = tl.load(up_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        if not IS_GROUPED:
            gate = tl.dot(x, tl.trans(w_gate.to(x.dtype)), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(w_up.to(x.dtype)), up, input_precision="ieee")
        else:
            scale_at = gate_scales + start // PER_SCALE
            gate_scale = tl.load(scale_at, mask=is_output, other=0.0).to(tl.float32)
            up_scale = tl.load(
                scale_at + NUM_OUTPUTS * (NUM_INPUTS // PER_SCALE), mask=is_output, other=0.0
            ).to(tl.float32)
            gate += tl.dot(x, tl.trans(w_gate.to(x.dtype)), input_precision="ieee") * gate_scale[None, :]
            up += tl.dot(x, tl.trans(w_up.to(x.dtype)), input_precision="ieee") * up_scale[None, :]
    if PER_SCALE == NUM_INPUTS:
        gate *= tl.load(gate_scales, mask=is_output, other=0.0).to(tl.float32)[None, :]
        up *= tl.load(gate_scales + NUM_OUTPUTS, mask=is_output, other=0.0).to(tl.float32)[None, :]
    # Values are rounded where torch rounds: its products have the rows' dtype.
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
    scales,
    order,
    targets,
    ends,
    weights,
    results,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    PER_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
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
    if PER_SCALE > 0:
        own_scales = scales + (slot * NUM_OUTPUTS + output) * (NUM_INPUTS // PER_SCALE)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = (at < NUM_INPUTS)[None, :]
        x = tl.load(x_at + at[None, :], mask=is_row[:, None] & is_input, other=0.0)
        w = tl.load(w_at + at[None, :], mask=is_output[:, None] & is_input, other=0.0)
        if not IS_GROUPED:
            total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
        else:
            scale = tl.load(own_scales + start // PER_SCALE, mask=is_output, other=0.0).to(tl.float32)
            total += tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee") * scale[None, :]
    if PER_SCALE == NUM_INPUTS:
        total *= tl.load(own_scales, mask=is_output, other=0.0).to(tl.float32)[None, :]
    kind = results.dtype.element_ty
    weight = tl.load(weights + tl.load(order + row, mask=is_row, other=0), mask=is_row, other=0.0)
    result = (total.to(kind).to(tl.float32) * weight[:, None]).to(kind)
    target = tl.load(targets + row, mask=is_row, other=0).to(tl.int64)
    out = results + target[:, None] * NUM_OUTPUTS + output[None, :]
    tl.store(out, result, mask=is_row[:, None] & is_output[None, :])
