"""Computes a single token's experts: matrix times vector, without sorting, both choices added at once.

Legend: H hidden, F expert width, S slots, K = 2 experts per token, C inputs that share a scale.

    first      computes w2's inputs [K, F] = silu(w1 x) * (w3 x)
    second     computes the two results, weighs and adds them: [1, H]

The results are those of `products.py` and `weigh.py`: rounded where torch rounds, added in the order of the
choices.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from actors.gpu.experts.stacks import Stack, Stacks

# Outputs at a time, inputs at a time and warps; the fastest of 28 combinations on an H200 with the shapes of
# Phi-3.5-MoE.
_FIRST, _SECOND = (2, 1024, 4), (4, 512, 2)


def suits(stacks: Stacks) -> bool:
    """Return whether a tile consists of whole groups of inputs that share a scale, for both stacks."""
    return all(
        not stack.is_grouped
        or ((size := stack.num_inputs_per_scale) & (size - 1) == 0 and size <= min(_FIRST[1], _SECOND[1]))
        for stack in (stacks.gate_up, stacks.down)
    )


def one_token(
    row: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor, stacks: Stacks
) -> torch.Tensor:
    """Return the token's result [1, H] for row [1, H], expert_ids [1, 2] int64 and weights [1, 2] float32.

    `slots` [E + 1] int64 maps an expert id to its slot. The stacks must hold both experts and satisfy
    `suits`.
    """
    _, hidden, width = stacks.down.values.shape
    between = torch.empty((2, width), dtype=row.dtype, device=row.device)
    _first[(triton.cdiv(width, _FIRST[0]), 2)](
        row.contiguous(),
        stacks.gate_up.values,
        stacks.gate_up.scales,
        expert_ids.contiguous(),
        slots,
        between,
        **_sizes(stacks.gate_up, width, _FIRST),
    )
    result = torch.empty_like(row)
    _second[(triton.cdiv(hidden, _SECOND[0]),)](
        between,
        stacks.down.values,
        stacks.down.scales,
        expert_ids.contiguous(),
        slots,
        weights.contiguous(),
        result,
        **_sizes(stacks.down, hidden, _SECOND),
    )
    return result


def _sizes(stack: Stack, num_outputs: int, tile: tuple[int, int, int]) -> dict[str, Any]:
    num_inputs = stack.values.shape[2]
    outputs, inputs, num_warps = tile
    return {
        "NUM_INPUTS": num_inputs,
        "NUM_OUTPUTS": num_outputs,
        "PER_SCALE": stack.num_inputs_per_scale,
        "OUTPUTS": outputs,
        "INPUTS": inputs,
        "NUM_PARTS": inputs // stack.num_inputs_per_scale if stack.is_grouped else inputs,
        "INPUTS_FIT": num_inputs % inputs == 0,
        "OUTPUTS_FIT": num_outputs % outputs == 0,
        "IS_GROUPED": stack.is_grouped,
        "num_warps": num_warps,
    }


@triton.jit
def _weights(
    values,
    output,
    start,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    INPUTS_FIT: tl.constexpr,
    OUTPUTS_FIT: tl.constexpr,
):
    """Load the tile [OUTPUTS, INPUTS], from input `start` on, of the matrix at `values`."""
    at = start + tl.arange(0, INPUTS)
    source = values + output[:, None] * NUM_INPUTS + at[None, :]
    # An unnecessary mask costs registers, and so reduces the number of loads in progress.
    mask = (at < NUM_INPUTS)[None, :]
    if not OUTPUTS_FIT:
        mask &= (output < NUM_OUTPUTS)[:, None]
    return tl.load(source) if (INPUTS_FIT & OUTPUTS_FIT) else tl.load(source, mask=mask, other=0.0)


@triton.jit
def _products(
    w,
    x,
    scales,
    output,
    start,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    PER_SCALE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
):
    """Return the products of a tile's weights with x [INPUTS], as [OUTPUTS, NUM_PARTS] float32.

    If an output has several scales, the products that share one are added and scaled; else each input is a
    part.
    """
    if w.dtype == tl.int8:
        # The values go by way of the row's dtype, which holds them exactly. Triton converts integers to
        # bfloat16 by bit operations.
        w = w.to(x.dtype)
    products = w.to(tl.float32) * x.to(tl.float32)[None, :]
    if IS_GROUPED:
        num_scales: tl.constexpr = NUM_INPUTS // PER_SCALE
        scale_at = start // PER_SCALE + tl.arange(0, NUM_PARTS)
        mask = (output < NUM_OUTPUTS)[:, None] & (scale_at < num_scales)[None, :]
        scale = tl.load(scales + output[:, None] * num_scales + scale_at[None, :], mask=mask, other=0.0)
        sums = tl.sum(tl.reshape(products, (OUTPUTS, NUM_PARTS, PER_SCALE)), axis=2)
        products = sums * scale.to(tl.float32)
    return products


@triton.jit
def _total(
    parts, scales, output, NUM_INPUTS: tl.constexpr, NUM_OUTPUTS: tl.constexpr, PER_SCALE: tl.constexpr
):
    """Return the sums [OUTPUTS] of the parts, scaled if each output has one scale."""
    total = tl.sum(parts, axis=1)
    if PER_SCALE == NUM_INPUTS:
        total *= tl.load(scales + output, mask=output < NUM_OUTPUTS, other=0.0).to(tl.float32)
    return total


@triton.jit
def _input(x, start, NUM_INPUTS: tl.constexpr, INPUTS: tl.constexpr, INPUTS_FIT: tl.constexpr):
    at = start + tl.arange(0, INPUTS)
    return tl.load(x + at) if INPUTS_FIT else tl.load(x + at, mask=at < NUM_INPUTS, other=0.0)


@triton.jit
def _first(
    row,
    gate_up,
    scales,
    expert_ids,
    slots,
    between,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    PER_SCALE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    INPUTS_FIT: tl.constexpr,
    OUTPUTS_FIT: tl.constexpr,
    IS_GROUPED: tl.constexpr,
):
    choice = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    slot = tl.load(slots + tl.load(expert_ids + choice))
    w_gate = gate_up + slot * (2 * NUM_OUTPUTS * NUM_INPUTS)
    w_up = w_gate + NUM_OUTPUTS * NUM_INPUTS
    gate_scales, up_scales = scales, scales
    if PER_SCALE > 0:
        gate_scales += slot * (2 * NUM_OUTPUTS) * (NUM_INPUTS // PER_SCALE)
        up_scales = gate_scales + NUM_OUTPUTS * (NUM_INPUTS // PER_SCALE)
    gate = tl.zeros((OUTPUTS, NUM_PARTS), tl.float32)
    up = tl.zeros((OUTPUTS, NUM_PARTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        # The weights are loaded before anything else, so that all their loads are in progress at once.
        gate_tile = _weights(w_gate, output, start, NUM_INPUTS, NUM_OUTPUTS, INPUTS, INPUTS_FIT, OUTPUTS_FIT)
        up_tile = _weights(w_up, output, start, NUM_INPUTS, NUM_OUTPUTS, INPUTS, INPUTS_FIT, OUTPUTS_FIT)
        x = _input(row, start, NUM_INPUTS, INPUTS, INPUTS_FIT)
        gate += _products(
            gate_tile, x, gate_scales, output, start,
            NUM_INPUTS, NUM_OUTPUTS, PER_SCALE, OUTPUTS, NUM_PARTS, IS_GROUPED,
        )  # fmt: skip
        up += _products(
            up_tile, x, up_scales, output, start,
            NUM_INPUTS, NUM_OUTPUTS, PER_SCALE, OUTPUTS, NUM_PARTS, IS_GROUPED,
        )  # fmt: skip
    kind = between.dtype.element_ty
    gate_sum = _total(gate, gate_scales, output, NUM_INPUTS, NUM_OUTPUTS, PER_SCALE).to(kind).to(tl.float32)
    up_sum = _total(up, up_scales, output, NUM_INPUTS, NUM_OUTPUTS, PER_SCALE).to(kind).to(tl.float32)
    gate_sum = (gate_sum / (1.0 + tl.exp(-gate_sum))).to(kind).to(tl.float32)
    tl.store(between + choice * NUM_OUTPUTS + output, (gate_sum * up_sum).to(kind), mask=output < NUM_OUTPUTS)


@triton.jit
def _second(
    between,
    down,
    scales,
    expert_ids,
    slots,
    weights,
    result,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    PER_SCALE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    INPUTS_FIT: tl.constexpr,
    OUTPUTS_FIT: tl.constexpr,
    IS_GROUPED: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    left_slot = tl.load(slots + tl.load(expert_ids))
    right_slot = tl.load(slots + tl.load(expert_ids + 1))
    w_left = down + left_slot * (NUM_OUTPUTS * NUM_INPUTS)
    w_right = down + right_slot * (NUM_OUTPUTS * NUM_INPUTS)
    left_scales, right_scales = scales, scales
    if PER_SCALE > 0:
        left_scales += left_slot * NUM_OUTPUTS * (NUM_INPUTS // PER_SCALE)
        right_scales += right_slot * NUM_OUTPUTS * (NUM_INPUTS // PER_SCALE)
    left = tl.zeros((OUTPUTS, NUM_PARTS), tl.float32)
    right = tl.zeros((OUTPUTS, NUM_PARTS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        left_tile = _weights(w_left, output, start, NUM_INPUTS, NUM_OUTPUTS, INPUTS, INPUTS_FIT, OUTPUTS_FIT)
        right_tile = _weights(
            w_right, output, start, NUM_INPUTS, NUM_OUTPUTS, INPUTS, INPUTS_FIT, OUTPUTS_FIT
        )
        x = _input(between, start, NUM_INPUTS, INPUTS, INPUTS_FIT)
        y = _input(between + NUM_INPUTS, start, NUM_INPUTS, INPUTS, INPUTS_FIT)
        left += _products(
            left_tile, x, left_scales, output, start,
            NUM_INPUTS, NUM_OUTPUTS, PER_SCALE, OUTPUTS, NUM_PARTS, IS_GROUPED,
        )  # fmt: skip
        right += _products(
            right_tile, y, right_scales, output, start,
            NUM_INPUTS, NUM_OUTPUTS, PER_SCALE, OUTPUTS, NUM_PARTS, IS_GROUPED,
        )  # fmt: skip
    kind = result.dtype.element_ty
    left_sum = _total(left, left_scales, output, NUM_INPUTS, NUM_OUTPUTS, PER_SCALE).to(kind).to(tl.float32)
    right_sum = (
        _total(right, right_scales, output, NUM_INPUTS, NUM_OUTPUTS, PER_SCALE).to(kind).to(tl.float32)
    )
    left_sum = (left_sum * tl.load(weights)).to(kind).to(tl.float32)
    right_sum = (right_sum * tl.load(weights + 1)).to(kind).to(tl.float32)
    tl.store(result + output, (left_sum + right_sum).to(kind), mask=output < NUM_OUTPUTS)
