"""Experts of one layer on a CPU with the project's own kernels: two calls compute all rows of all experts.

Legend: T tokens, H hidden, K experts per token, F expert width, N results.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from actors.checkpoint.weights import ExpertWeights
from actors.expert.order import Indices, sort_by_slot
from actors.kernels.library import Kernels, kernels_for, pack


class GroupedLinearLayer:
    """Weights are packed one tensor at a time as they come (`actors.kernels`)."""

    def __init__(self, slots: torch.Tensor, experts: Iterable[ExpertWeights]) -> None:
        """slots [E + 1] int64: expert id -> slot, with id -1 at the end."""
        self._slots: Indices = slots.numpy()
        self._weights: list[torch.Tensor] = []
        for expert in experts:
            self._hidden_size = expert.w2.shape[0]
            self._width = expert.w2.shape[1]
            self._weights += [pack(torch.cat((expert.w1, expert.w3))), pack(expert.w2)]
        addresses = np.array([weight.data_ptr() for weight in self._weights], dtype=np.uint64)
        self._gate_up, self._down = addresses[::2].copy(), addresses[1::2].copy()
        self._dtype = self._weights[0].dtype
        self._kernels = _require(kernels_for(self._dtype, self._width), self._dtype)

    @staticmethod
    def suits(dtype: torch.dtype, hidden_size: int, width: int) -> bool:
        """Whether there are kernels for such experts on this processor."""
        return kernels_for(dtype, hidden_size) is not None and kernels_for(dtype, width) is not None

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """As GroupedExperts.forward."""
        num_choices = expert_ids.shape[1]
        slots = self._slots[expert_ids.numpy()].reshape(-1)  # [T * K]
        order, source_of = sort_by_slot(slots, num_results)
        used, first = np.unique(slots[order], return_index=True)
        starts = np.append(first, num_results)  # [groups + 1]
        chosen = torch.from_numpy(order)  # [N] into T * K, by expert, in token order
        hidden = self._product(rows.index_select(0, chosen // num_choices), starts, self._gate_up[used])
        hidden = F.silu(hidden[:, : self._width]).mul_(hidden[:, self._width :])  # [N, F]
        scales = weights.reshape(-1).index_select(0, chosen)  # [N]
        by_expert = self._product(hidden, starts, self._down[used], scales)
        return by_expert.index_select(0, torch.from_numpy(source_of))

    def _product(
        self, x: torch.Tensor, starts: Indices, addresses: np.ndarray, scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rows starts[g] .. starts[g + 1] - 1 of x by the weight at addresses[g], times their scales in float32."""
        num_outputs = 2 * self._width if scales is None else self._hidden_size
        out = x.new_empty((x.shape[0], num_outputs))
        self._kernels.grouped_linear(
            x.data_ptr(),
            starts.ctypes.data,
            addresses.ctypes.data,
            0,
            0 if scales is None else scales.data_ptr(),
            out.data_ptr(),
            len(addresses),
            num_outputs,
            x.shape[1],
            self._dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        return out


def _require(kernels: Kernels | None, dtype: torch.dtype) -> Kernels:
    if kernels is None:
        raise ValueError(f"no kernels for {dtype} on this processor")
    return kernels
