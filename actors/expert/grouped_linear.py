"""Experts of one layer on a CPU with the project's own kernels: one call computes all rows of all experts.

Legend: T tokens, H hidden, K experts per token, F expert width, N results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch

from actors.checkpoint.weights import ExpertWeights
from actors.kernels.library import Kernels, kernels_for, pack
from actors.kernels.threads import num_threads

PackedExpert: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""w1 and w3 together, w2."""
_ALIGNMENT = 16
"""The expert width is a multiple of this."""


class GroupedLinearLayer:
    """Weights are packed one tensor at a time as they come (`actors.kernels`)."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[ExpertWeights | PackedExpert]) -> None:
        """slots [E + 1] int64: expert id -> slot, negative for an expert that is not here."""
        self._slots = slots
        self._experts = [_pack(expert) if isinstance(expert, ExpertWeights) else expert for expert in experts]
        gate_up, down = self._experts[0]
        # A packed weight is [blocks, inputs / P, B, P].
        self._hidden_size, self._width = (weight.shape[1] * weight.shape[3] for weight in (gate_up, down))
        addresses = np.array(
            [[weight.data_ptr() for weight in expert] for expert in self._experts], dtype=np.uint64
        )
        self._gate_up, self._down = addresses[:, 0].copy(), addresses[:, 1].copy()
        self._dtype = gate_up.dtype
        self._compute = _kernels_of(gate_up).experts
        self._tables = (self._slots.data_ptr(), self._gate_up.ctypes.data, self._down.ctypes.data)

    @staticmethod
    def suits(dtype: torch.dtype, hidden_size: int, width: int) -> bool:
        """Whether there are kernels for such experts on this processor."""
        return kernels_for(dtype, hidden_size) is not None and width % _ALIGNMENT == 0

    def expert(self, slot: int) -> PackedExpert:
        """As LayerExperts.expert."""
        return self._experts[slot]

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward."""
        out = rows.new_empty((num_results, self._hidden_size))
        rows, expert_ids, weights = rows.contiguous(), expert_ids.contiguous(), weights.contiguous()
        fault = self._compute(
            rows.data_ptr(),
            expert_ids.data_ptr(),
            weights.data_ptr(),
            *self._tables,
            out.data_ptr(),
            *expert_ids.shape,
            len(self._gate_up),
            num_results,
            self._hidden_size,
            self._width,
            self._dtype == torch.bfloat16,
            num_threads(),
        )
        if fault == 1:
            raise ValueError("expert_ids names an expert that is not on this rank")
        if fault == 2:
            raise ValueError(
                f"num_results is {num_results}, expected the number of expert ids that are not -1"
            )
        if fault:
            raise MemoryError(f"no memory for {num_results} rows of experts")
        return out


def _pack(expert: ExpertWeights) -> PackedExpert:
    kernels = _kernels_of(expert.w2)
    return pack(kernels, torch.cat((expert.w1, expert.w3))), pack(kernels, expert.w2)


def _kernels_of(weight: torch.Tensor) -> Kernels:
    kernels = kernels_for(weight.dtype)
    if kernels is None:
        raise ValueError(f"no kernels for {weight.dtype} on this processor")
    return kernels
