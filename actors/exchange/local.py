"""All experts inside the dense process: for one device, and the reference of every other transport.

Legend: T tokens, H hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from actors.exchange.combine import add_choices
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Handle

Compute: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""`GroupedExperts.forward`: (layer, rows, expert_ids, weights, num_results) -> results [num_results, H]."""

Combined: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`GroupedExperts.combined`: (layer, rows, expert_ids, weights) -> the sum of each token's results [T, H]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _LocalHandle:
    total: torch.Tensor
    """[T, H]"""


class LocalExchange:
    """Computes in `dispatch`; nothing can be lost, so nothing is raised."""

    is_ready = True
    kernels = None

    def __init__(
        self, compute: Compute, load: ExpertLoad | None = None, combined: Combined | None = None
    ) -> None:
        """`load` counts routes on CPU only. `combined`, if given, replaces `compute`.

        For few rows, `combined` only queues device work and accepts rows without an expert at the end.
        """
        self.combined = combined
        self._compute = compute
        self._load = load

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        if self._load is not None and expert_ids.device.type == "cpu":
            self._load.count(layer, expert_ids.numpy())
        if self.combined is not None:
            return _LocalHandle(total=self.combined(layer, rows, expert_ids, weights))
        num_tokens, num_choices = expert_ids.shape
        results = self._compute(layer, rows, expert_ids, weights, num_tokens * num_choices)
        return _LocalHandle(total=add_choices(results, num_choices))

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, _LocalHandle)
        return handle.total

    def tend(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass
