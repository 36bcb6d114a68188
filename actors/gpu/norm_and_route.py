"""Computes residual sum, LayerNorm, gate and sparse mixer, between attention and experts, in one kernel.

Legend: T tokens, H hidden, E experts, K = 2 experts per token.

A program takes one token and reads the whole gate, which stays in the L2 cache for all programs. This is fast
for few tokens; for many tokens separate operations are faster.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from actors.checkpoint.weights import Norm
from actors.gpu.add_norm import normalised
from actors.gpu.route import choose_two

MOST_TOKENS = 64

_MOST_WEIGHTS = 1 << 16
"""Number of weights of the largest gate, padded to powers of two, that fits the registers of a program."""


def fits(num_experts: int, hidden_size: int) -> bool:
    """Return whether the registers of a program hold the whole gate."""
    return triton.next_power_of_2(num_experts) * triton.next_power_of_2(hidden_size) <= _MOST_WEIGHTS


def norm_and_route(
    x: torch.Tensor, added: torch.Tensor, norm: Norm, eps: float, gate: torch.Tensor, jitter: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x + added, its LayerNorm, expert ids and weights of each token.

    The sum and the norm are [T, H] in x's dtype, the ids [T, 2] int64, the weights [T, 2] float32. `gate` [E,
    H] is contiguous and fits the registers (see `fits`). Values are rounded wherever the separate operations
    round.
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
    NUM_EXPERTS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    expert, at = tl.arange(0, EXPERTS), tl.arange(0, SIZE)
    # The gate is loaded first, so that it arrives while the row is summed.
    mask = (expert < NUM_EXPERTS)[:, None] & (at < HIDDEN)[None, :]
    w = tl.load(gate + expert[:, None] * HIDDEN + at[None, :], mask=mask, other=0.0)
    row = normalised(x, added, gain, shift, total, normed, token, eps, HIDDEN, SIZE)
    products = w.to(tl.float32) * tl.where(at < HIDDEN, row.to(tl.float32), 0.0)[None, :]
    # Separate operations round the gate's product to the row's dtype.
    score = tl.sum(products, axis=1).to(normed.dtype.element_ty).to(tl.float32)
    score = tl.where(expert < NUM_EXPERTS, score, float("-inf"))[None, :]
    first, first_weight, second, second_weight = choose_two(score, window, expert)
    place = token * 2 + tl.arange(0, 1)
    tl.store(expert_ids + place, first.to(tl.int64))
    tl.store(expert_ids + place + 1, second.to(tl.int64))
    tl.store(weights + place, first_weight)
    tl.store(weights + place + 1, second_weight)
