"""The sparse mixer in its inference form (NUMERICS: router; Liu et al. 2024, GRIN, section 2).

Legend: T tokens, E experts, K = 2 experts per token.

Each of two rounds takes the highest score and weighs it by a softmax over the rivals that lie within a relative
window of 2 * jitter below it. The two weights are not renormalised and need not add up to one.
"""

from __future__ import annotations

import torch


def route(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts for scores [T, E]: expert_ids [T, 2] int64, weights [T, 2] float32.

    Scores may have any floating dtype; comparison and softmax happen in float32. Of equal scores the lowest expert
    id is taken first.
    """
    scores = scores.float()
    first_weight, first = _round(scores, scores, jitter)
    rest = scores.scatter(-1, first, float("-inf"))
    second_weight, second = _round(rest, scores, jitter)
    return torch.cat((first, second), dim=-1), torch.cat((first_weight, second_weight), dim=-1)


def _round(
    candidates: torch.Tensor, scores: torch.Tensor, jitter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [T, 1] and id [T, 1] of the best candidate; the window is taken over the original scores."""
    best, expert = candidates.max(dim=-1, keepdim=True)
    outside = (best - scores) / torch.maximum(scores.abs(), best) > 2 * jitter
    weights = torch.softmax(candidates.masked_fill(outside, float("-inf")), dim=-1)
    return weights.gather(-1, expert), expert
