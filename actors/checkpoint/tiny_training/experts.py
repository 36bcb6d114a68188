"""The mixture of experts of the trainable PhiMoE: a sparse-mixer router and 16 experts in grouped matrices.

The forward pass is that of serving; only the gradient of the router is our own. At inference a routing weight
is almost always 1 for any scores, so its derivative teaches nothing. In training the weight keeps
its value but takes the derivative of the plain softmax probability of its expert (a straight-through
estimator). An auxiliary loss keeps the experts evenly loaded (Switch Transformers, arXiv 2101.03961, section
2.2).

Legend: T tokens, H hidden, E experts, K = 2 per token, F expert width, N = T * K routed rows.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """The router and its experts. In `w13` the gate matrix of an expert lies above its up matrix."""

    def __init__(self, hidden: int, expert_width: int, num_experts: int, jitter: float) -> None:
        super().__init__()
        self.jitter = jitter
        self.gate = nn.Linear(hidden, num_experts, bias=False)
        self.w13 = nn.Parameter(torch.empty(num_experts, 2 * expert_width, hidden))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden, expert_width))

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' output [T, H] and the balance loss, which is 1 if the load is even."""
        scores_TE = self.gate(x_TH)
        experts_TK, weights_TK = sparse_mixer(scores_TE.detach(), self.jitter)
        chances_TE = scores_TE.softmax(dim=-1)
        chances_TK = chances_TE.gather(1, experts_TK)
        weights_TK = weights_TK + (chances_TK - chances_TK.detach())

        num_experts = scores_TE.shape[1]
        experts_N = experts_TK.flatten()
        counts_E = experts_N.bincount(minlength=num_experts)
        order_N = experts_N.argsort(stable=True)
        back_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(order_N.numel()))
        rows_NH = _permute(x_TH.repeat_interleave(2, dim=0), order_N, back_N)
        inputs = (rows_NH, self.w13, self.w2, counts_E.tolist())
        out_NH: Tensor = _GroupedExperts.apply(*inputs)  # type: ignore[no-untyped-call]
        out_NH = _permute(out_NH, back_N, order_N)
        out_TH = (out_NH.view(-1, 2, x_TH.shape[1]) * weights_TK.unsqueeze(2)).sum(dim=1)

        loads_E = counts_E / experts_N.numel()
        return out_TH, num_experts * (loads_E * chances_TE.mean(dim=0)).sum()


def sparse_mixer(scores_TE: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Return each token's two experts [T, 2] and their weights [T, 2], by SparseMixer-v2's inference form.

    A weight is the softmax over the experts whose score lies within a relative distance of 2 * jitter of the
    best. If there is only one such expert its weight is 1, so the two weights do not add up to 1.
    """
    first_TE, second_TE = scores_TE, scores_TE.clone()
    experts, weights = [], []
    for left_TE in (first_TE, second_TE):
        best_T1, expert_T1 = left_TE.max(dim=-1, keepdim=True)
        is_far_TE = (best_T1 - scores_TE) / scores_TE.abs().clamp(min=best_T1) > 2 * jitter
        weight_TE = left_TE.masked_fill(is_far_TE, -math.inf).softmax(dim=-1)
        experts.append(expert_T1)
        weights.append(weight_TE.gather(1, expert_T1))
        second_TE.scatter_(1, expert_T1, -math.inf)
    return torch.cat(experts, dim=1), torch.cat(weights, dim=1)


def _permute(rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Return rows[order]; `back` is the inverse permutation of `order`."""
    permuted: Tensor = _Permute.apply(rows, order, back)  # type: ignore[no-untyped-call]
    return permuted


class _Permute(torch.autograd.Function):
    """A permutation whose backward pass gathers by the inverse order; indexing would scatter and add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


class _GroupedExperts(torch.autograd.Function):
    """w2(silu(w1 x) * (w3 x)) for rows sorted by expert, `counts` rows each; `w13` is w1 above w3.

    The backward pass is written by hand, since on a CPU the small slices and sums that autograd adds around
    every expert's products take longer than the products.
    """

    @staticmethod
    def forward(ctx: Any, rows_NH: Tensor, w13: Tensor, w2: Tensor, counts: list[int]) -> Tensor:
        gate_up = _multiply(rows_NH, w13.transpose(1, 2), counts)
        gate, up = gate_up.chunk(2, dim=1)
        inner_NF = F.silu(gate) * up
        ctx.save_for_backward(rows_NH, w13, w2, gate_up, inner_NF)
        ctx.counts = counts
        return _multiply(inner_NF, w2.transpose(1, 2), counts)

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows_NH, w13, w2, gate_up, inner_NF = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=1)
        grad_inner_NF = _multiply(grad_NH, w2, ctx.counts)
        sigmoid = gate.sigmoid()
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=1)
        torch.mul(grad_inner_NF, up * sigmoid * (1 + gate * (1 - sigmoid)), out=grad_gate)
        torch.mul(grad_inner_NF, gate * sigmoid, out=grad_up)
        return (
            _multiply(grad_gate_up, w13, ctx.counts),
            _outer(grad_gate_up, rows_NH, ctx.counts),
            _outer(grad_NH, inner_NF, ctx.counts),
            None,
        )


def _multiply(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Multiply each expert's rows [n, I] by its matrix [I, O]; return all results [N, O] in row order."""
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    for part, weight, target in zip(
        torch.split(rows, counts), weights, torch.split(out, counts), strict=True
    ):
        torch.mm(part, weight, out=target)
    return out


def _outer(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
    """Return left.T @ right over each expert's rows: [E, width of left, width of right]."""
    out = left.new_empty(len(counts), left.shape[1], right.shape[1])
    for a, b, target in zip(torch.split(left, counts), torch.split(right, counts), out, strict=True):
        torch.mm(a.T, b, out=target)
    return out
