"""Experts of one layer on CUDA: few rows by the project's Triton kernels, many by `grouped_mm`.

Legend: T tokens, K experts per token, E experts.

No step in bfloat16 asks the device anything, nor does one of few rows in any dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from actors.checkpoint.weights import ExpertWeights
from actors.expert.grouped_matmul import many_rows, stack_experts, stacked_expert
from actors.gpu.experts import MOST_ENTRIES, few_rows


class TritonLayer:
    """Weights of all slots in two stacks."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[ExpertWeights]) -> None:
        """slots [E + 1] int64 on the device: expert id -> slot, with id -1 at the end."""
        self._slots = slots
        self._stacks = stack_experts(slots, experts)

    def expert(self, slot: int) -> ExpertWeights:
        """As LayerExperts.expert."""
        return stacked_expert(self._stacks, slot)

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward; an expert of another rank is not noticed, and of a batch of at most MOST_ENTRIES entries
        fewer may be valid than num_results says."""
        if expert_ids.numel() <= MOST_ENTRIES:
            return few_rows(rows, expert_ids, weights, num_results, self._slots, self._stacks)
        if rows.dtype == torch.bfloat16:
            return many_rows(rows, expert_ids, weights, num_results, self._slots, self._stacks)
        return self._in_parts(rows, expert_ids, weights)

    def _in_parts(self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Many rows in a dtype that `grouped_mm` does not take. Waits for the device: each part's valid entries are counted."""
        most_tokens = MOST_ENTRIES // expert_ids.shape[1]
        parts = []
        for start in range(0, len(rows), most_tokens):
            part = slice(start, start + most_tokens)
            num_results = int((expert_ids[part] >= 0).sum())
            if num_results:
                args = (rows[part], expert_ids[part], weights[part], num_results)
                parts.append(few_rows(*args, self._slots, self._stacks))
        return torch.cat(parts)
