"""Experts of one layer as a loop of two products each. What a CPU without kernels of the
project runs, and CUDA in dtypes other than bfloat16.

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
"""w1 and w3 together, w2."""


class PackedLayer:
    """The loop. Weights are packed one tensor at a time as they come (`actors.linear`)."""

    def __init__(
        self, slots: torch.Tensor, experts: Iterable[ExpertWeights | QuantizedExpert | PackedExpert]
    ) -> None:
        """slots [E + 1] int64: expert id -> slot, with id -1 at the end."""
        self._slots: Indices = slots.cpu().numpy()
        self._products = [_pack(expert) for expert in experts]

    def expert(self, slot: int) -> PackedExpert:
        """As LayerExperts.expert."""
        return self._products[slot]

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward. On CUDA the ids cross to the host, which is a sync."""
        num_choices = expert_ids.shape[1]
        slots = self._slots[expert_ids.cpu().numpy()].reshape(-1)  # [T * K]
        order, source_of = _sort(slots, num_results)
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


def _pack(expert: ExpertWeights | QuantizedExpert | PackedExpert) -> PackedExpert:
    if isinstance(expert, QuantizedExpert):
        return make_quantized_product(join(expert.w1, expert.w3)), make_quantized_product(expert.w2)
    if not isinstance(expert, ExpertWeights):
        return expert
    return make_product(torch.cat((expert.w1, expert.w3))), make_product(expert.w2)


def _sort(slots: Indices, num_results: int) -> tuple[Indices, Indices]:
    """(order, source_of), [N] each: the valid entries by slot and then by position, and for each result, row-major,
    its place in that order.

    Raises ValueError for an expert of another rank and for a wrong num_results.
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
    """(slot, start, end) of each stretch of equal slots."""
    bounds = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    for start, end in pairwise(bounds):
        yield int(slots[start]), start, end
