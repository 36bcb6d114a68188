"""Between attention and experts, for few tokens: residual sum, LayerNorm, gate and sparse mixer in one kernel.

Legend: T tokens, H hidden, E experts, K = 2 experts per token.

A program takes one token and reads the whole gate, which all of them find in the L2 cache. For many tokens the three operations
one by one are faster.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import triton
import triton.language as tl

from actors.checkpoint.weights import Norm
from actors.gpu.add_norm import normalised
from actors.gpu.route import choose_two

MOST_TOKENS = 64

_INPUTS = 1024
"""Of the gate that are multiplied at a time."""

Routed: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def norm_and_route(
    x: torch.Tensor, added: torch.Tensor, norm: Norm, eps: float, gate: torch.Tensor, jitter: float
) -> Routed:
    """x + added and its LayerNorm, each [T, H] in x's dtype; expert ids [T, 2] int64 and weights [T, 2] float32.

    gate [E, H] contiguous, at most 64 experts. All is rounded where the operations one by one round.
    """
    x, added = x.contiguous(), added.contiguous()
    num_tokens, hidden = x.shape
    num_experts = gate.shape[0]
    total, normed = torch.empty_like(x), torch.empty_like(x)
    expert_ids = torch.empty((num_tokens, 2), dtype=torch.int64, device=x.device)
    weights = torch.empty((num_tokens, 2), dtype=torch.float32, device=x.device)
    _norm_and_route[(num_tokens,)](
        x,
        added,
        norm.weight,
        norm.bias,
        gate,
        total,
        normed,
        expert_ids,
        weights,
        eps,
        2 * jitter,
        HIDDEN=hidden,
        SIZE=triton.next_power_of_2(hidden),
        INPUTS=min(_INPUTS, triton.next_power_of_2(hidden)),
        NUM_EXPERTS=num_experts,
        EXPERTS=triton.next_power_of_2(num_experts),
        num_warps=16,
    )
    return total, normed, expert_ids, weights


@triton.jit
def _norm_and_route(
    x,
    added,
    gain,
    shift,
    gate,
    total,
    normed,
    expert_ids,
    weights,
    eps,
    window,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    INPUTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    normalised(x, added, gain, shift, total, normed, token, eps, HIDDEN, SIZE)
    # What other threads of the program have written is read back in pieces that fit the registers beside the gate's.
    tl.debug_barrier()
    expert = tl.arange(0, EXPERTS)
    parts = tl.zeros((EXPERTS, INPUTS), tl.float32)
    for start in tl.static_range(0, HIDDEN, INPUTS):
        at = start + tl.arange(0, INPUTS)
        is_input = at < HIDDEN
        mask = (expert < NUM_EXPERTS)[:, None] & is_input[None, :]
        w = tl.load(gate + expert[:, None] * HIDDEN + at[None, :], mask=mask, other=0.0).to(tl.float32)
        row = tl.load(normed + token * HIDDEN + at, mask=is_input, other=0.0).to(tl.float32)
        parts += w * row[None, :]
    # The gate's product has the row's dtype.
    score = tl.sum(parts, axis=1).to(normed.dtype.element_ty).to(tl.float32)
    score = tl.where(expert < NUM_EXPERTS, score, float("-inf"))[None, :]
    first, first_weight, second, second_weight = choose_two(score, window, expert)
    place = token * 2 + tl.arange(0, 1)
    tl.store(expert_ids + place, first.to(tl.int64))
    tl.store(expert_ids + place + 1, second.to(tl.int64))
    tl.store(weights + place, first_weight)
    tl.store(weights + place + 1, second_weight)
