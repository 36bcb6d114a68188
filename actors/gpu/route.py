"""The sparse mixer in one kernel; `actors.dense.layers.router` defines it.

Legend: T tokens, E experts, K = 2 experts per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS = 16
"""Tokens per program."""


def route(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as `actors.dense.layers.router.route`."""
    num_tokens, num_experts = scores.shape
    expert_ids = torch.empty((num_tokens, 2), dtype=torch.int64, device=scores.device)
    weights = torch.empty((num_tokens, 2), dtype=torch.float32, device=scores.device)
    _route[(triton.cdiv(num_tokens, _ROWS),)](
        scores.contiguous(),
        expert_ids,
        weights,
        num_tokens,
        2 * jitter,
        NUM_EXPERTS=num_experts,
        EXPERTS=triton.next_power_of_2(num_experts),
        ROWS=_ROWS,
        num_warps=1,
    )
    return expert_ids, weights


@triton.jit
def _route(
    scores,
    expert_ids,
    weights,
    num_tokens,
    window,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    is_row = row < num_tokens
    mask = is_row[:, None] & (expert < NUM_EXPERTS)[None, :]
    score = tl.load(scores + row[:, None] * NUM_EXPERTS + expert[None, :], mask=mask, other=float("-inf"))
    score = score.to(tl.float32)
    first, first_weight, second, second_weight = choose_two(score, window, expert)
    tl.store(expert_ids + row * 2, first.to(tl.int64), mask=is_row)
    tl.store(expert_ids + row * 2 + 1, second.to(tl.int64), mask=is_row)
    tl.store(weights + row * 2, first_weight, mask=is_row)
    tl.store(weights + row * 2 + 1, second_weight, mask=is_row)


@triton.jit
def choose_two(score, window, expert):
    """Return, within a kernel, id and weight of the best expert and of the second one, each [T].

    The scores [T, E] are float32, and -inf after the last expert.
    """
    first, first_weight = _best(score, score, window, expert)
    rest = tl.where(expert[None, :] == first[:, None], float("-inf"), score)
    second, second_weight = _best(rest, score, window, expert)
    return first, first_weight, second, second_weight


@triton.jit
def _best(candidates, score, window, expert):
    """Return the best candidate of each row, and its softmax among the candidates in the window."""
    best = tl.max(candidates, axis=1)
    is_best = candidates == best[:, None]
    chosen = tl.min(tl.where(is_best, expert[None, :], 2147483647), axis=1)
    # The quotient decides which candidates are in the window, so it is rounded as torch rounds it. 0 / 0 is
    # NaN, which is not greater than the window.
    reach = tl.maximum(tl.abs(score), best[:, None])
    is_outside = tl.div_rn(best[:, None] - score, reach) > window
    shares = tl.where(is_outside, 0.0, tl.exp(candidates - best[:, None]))
    return chosen, 1.0 / tl.sum(shares, axis=1)
