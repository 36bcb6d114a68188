"""The sparse mixer in its inference form (Liu et al. 2024, GRIN, section 2).

Legend: T tokens, E experts, K = 2 experts per token.

The router chooses twice. Each time it takes the highest of the remaining scores and weighs it by a softmax
over those remaining scores that lie within a relative window of 2 * jitter below it. The two weights are not
renormalised and need not add up to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from actors.devices import has_triton
from actors.kernels.library import Kernels, kernels_for

Route: TypeAlias = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
"""(scores [T, E], jitter) -> expert ids [T, K] int64, weights [T, K] float32; see `route`."""


def make_route(dtype: torch.dtype, device: torch.device) -> Route:
    """`route` for scores of this dtype on this device, in one call of the project's kernels if they support
    it."""
    if has_triton(device):
        from actors.gpu.route import route as route_on_device

        return route_on_device
    kernels = kernels_for(dtype) if device.type == "cpu" else None
    return route if kernels is None else _in_one_call(kernels, dtype)


def _in_one_call(kernels: Kernels, dtype: torch.dtype) -> Route:
    is_bf16 = dtype == torch.bfloat16

    def route_by_kernel(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
        num_tokens, num_experts = scores.shape
        scores = scores.contiguous()
        expert_ids = torch.empty((num_tokens, 2), dtype=torch.int64)
        weights = torch.empty((num_tokens, 2), dtype=torch.float32)
        addresses = (expert_ids.data_ptr(), weights.data_ptr())
        kernels.route(scores.data_ptr(), num_tokens, num_experts, jitter, *addresses, is_bf16)
        return expert_ids, weights

    return route_by_kernel


def route(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts for scores [T, E]; return expert ids [T, K] int64 and weights [T, K] float32.

    Scores may have any floating dtype; comparison and softmax are float32. Of equal scores the lowest expert
    id is taken first.
    """
    scores = scores.float()
    first_weight, first = _choose_best(scores, scores, jitter)
    rest = scores.scatter(-1, first, float("-inf"))
    second_weight, second = _choose_best(rest, scores, jitter)
    return torch.cat((first, second), dim=-1), torch.cat((first_weight, second_weight), dim=-1)


def _choose_best(
    candidates: torch.Tensor, scores: torch.Tensor, jitter: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [T, 1] and id [T, 1] of the best candidate; the window is taken over the original scores."""
    best, expert = candidates.max(dim=-1, keepdim=True)
    outside = (best - scores) / torch.maximum(scores.abs(), best) > 2 * jitter
    weights = torch.softmax(candidates.masked_fill(outside, float("-inf")), dim=-1)
    return weights.gather(-1, expert), expert
