"""Experts of one layer as a loop of two products each. What a CPU without the kernels of
`actors.kernels` runs, and CUDA in dtypes other than bfloat16.

Legend: T tokens, H hidden, K experts per token, F expert width, N results, n rows of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from actors.checkpoint.weights import ExpertWeights
from actors.expert.order import Indices, sort_by_slot
from actors.linear import Product, make_product


class PackedLayer:
    """The loop. Weights are packed one tensor at a time as they come (`actors.linear`)."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[ExpertWeights]) -> None:
        """slots [E + 1] int64: expert id -> slot, with id -1 at the end."""
        self._slots: Indices = slots.cpu().numpy()
        self._products = [_pack(expert) for expert in experts]

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward. On CUDA the ids cross to the host, which is a sync."""
        num_choices = expert_ids.shape[1]
        slots = self._slots[expert_ids.cpu().numpy()].reshape(-1)  # [T * K]
        order, source_of = sort_by_slot(slots, num_results)
        chosen = torch.from_numpy(order).to(rows.device)  # [N] into T * K, by expert, in token order
        tokens = chosen // num_choices
        scales = weights.reshape(-1, 1).index_select(0, chosen)  # [N, 1]
        by_expert = torch.empty((num_results, rows.shape[1]), dtype=rows.dtype, device=rows.device)
        for slot, start, end in _runs(slots[order]):
            # Rows are gathered expert by expert: each product then reads an aligned matrix of its own, whatever
            # came before it, since some kernels round differently for other alignments.
            gate_up, down = self._products[slot]
            gate, up = gate_up(rows.index_select(0, tokens[start:end])).chunk(2, dim=-1)  # [n, F] each
            result = down(F.silu(gate).mul_(up))  # [n, H]
            # With a float32 factor the product is computed in float32 and rounded once.
            torch.mul(result, scales[start:end], out=by_expert[start:end])
        return by_expert.index_select(0, torch.from_numpy(source_of).to(rows.device))


def _pack(expert: ExpertWeights) -> tuple[Product, Product]:
    return make_product(torch.cat((expert.w1, expert.w3))), make_product(expert.w2)


def _runs(slots: Indices) -> Iterator[tuple[int, int, int]]:
    """(slot, start, end) of each stretch of equal slots."""
    bounds = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    for start, end in pairwise(bounds):
        yield int(slots[start]), start, end
