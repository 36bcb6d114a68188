"""Experts of one layer as a loop over the experts, with two products each.

It serves CPUs for which the project has no kernels, and CUDA without Triton in dtypes other than bfloat16.

Legend: T tokens, H hidden, K experts per token, F expert width, N results, n rows of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from actors.checkpoint.quantized_weight import QuantizedExpert, join
from actors.checkpoint.weights import ExpertWeights
from actors.linear import Product, make_product, make_quantized_product

Indices: TypeAlias = npt.NDArray[np.int64]
PackedExpert: TypeAlias = tuple[Product, Product]
"""The product with w1 and w3 together, and the product with w2."""


class PackedLayer:
    """The experts of one layer. Their weights are packed one tensor at a time (`actors.linear`)."""

    def __init__(
        self, slots: torch.Tensor, experts: Iterable[ExpertWeights | QuantizedExpert | PackedExpert]
    ) -> None:
        """slots [E + 1] int64 gives the slot of each expert id; id -1 reads the last entry."""
        self._slots: Indices = slots.cpu().numpy()
        self._products = [_pack(expert) for expert in experts]

    def expert(self, slot: int) -> PackedExpert:
        """The packed expert in a slot; see LayerExperts."""
        return self._products[slot]

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does. On CUDA copying the ids to the host is a sync."""
        num_choices = expert_ids.shape[1]
        slots = self._slots[expert_ids.cpu().numpy()].reshape(-1)  # [T * K]
        order, source_of = _sort(slots, num_results)
        chosen = torch.from_numpy(order).to(rows.device)  # [N] indices into T * K, by slot and token
        tokens = chosen // num_choices
        scales = weights.reshape(-1, 1).index_select(0, chosen)  # [N, 1]
        by_expert = torch.empty((num_results, rows.shape[1]), dtype=rows.dtype, device=rows.device)
        for slot, start, end in _runs(slots[order]):
            # The rows of each expert are gathered into a matrix of their own, which is aligned: some kernels
            # round differently for other alignments, and results must not depend on the other experts.
            gate_up, down = self._products[slot]
            gate, up = gate_up(rows.index_select(0, tokens[start:end])).chunk(2, dim=-1)  # [n, F] each
            result = down(F.silu(gate).mul_(up))  # [n, H]
            # With a float32 factor the product is computed in float32 and rounded once.
            torch.mul(result, scales[start:end], out=by_expert[start:end])
        return by_expert.index_select(0, torch.from_numpy(source_of).to(rows.device))


def _pack(expert: ExpertWeights | QuantizedExpert | PackedExpert) -> PackedExpert:
    if isinstance(expert, QuantizedExpert):
        return make_quantized_product(join(expert.w1, expert.w3)), make_quantized_product(expert.w2)
    if not isinstance(expert, ExpertWeights):
        return expert
    return make_product(torch.cat((expert.w1, expert.w3))), make_product(expert.w2)


def _sort(slots: Indices, num_results: int) -> tuple[Indices, Indices]:
    """Sort the valid entries. slots [T * K] -> (order, source_of), [N] each.

    `order` has the valid entries by slot and then by position. `source_of` has, for each result in row-major
    order, its place in `order`. Raises ValueError for an expert that is not here and for a wrong num_results.
    """
    order = np.argsort(slots, kind="stable")
    if slots[order[0]] < -1:
        raise ValueError("expert_ids names an expert that is not on this rank")
    num_elsewhere = len(slots) - num_results
    order = order[num_elsewhere:]
    if slots[order[0]] < 0 or (num_elsewhere and np.count_nonzero(slots >= 0) != num_results):
        raise ValueError(f"num_results is {num_results}, expected the number of expert ids that are not -1")
    source_of = np.empty_like(slots)
    source_of[order] = np.arange(num_results)
    return order, source_of[slots >= 0]


def _runs(slots: Indices) -> Iterator[tuple[int, int, int]]:
    """Yield (slot, start, end) for each stretch of equal slots."""
    bounds = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    for start, end in pairwise(bounds):
        yield int(slots[start]), start, end
