"""All experts inside the dense process: for one device, and the reference of every other transport.

Legend: T tokens, H hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from actors.exchange.combine import add_choices
from actors.exchange.interface import Handle
from actors.exchange.load import ExpertLoad

Compute: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""`GroupedExperts.forward`: (layer, rows, expert_ids, weights, num_results) -> results [num_results, H]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _LocalHandle:
    results: torch.Tensor
    """[T * K, H]"""
    num_choices: int


class LocalExchange:
    """Computes in `dispatch`; nothing can be lost, so nothing is raised."""

    is_ready = True

    def __init__(self, compute: Compute, load: ExpertLoad | None = None, only_queues: bool = False) -> None:
        """Counts into `load` where the ids are on the host anyway: not on CUDA. only_queues: for few rows compute does nothing
        but queue work on the device, and takes rows without an expert behind all others."""
        self.compute = compute
        self.only_queues = only_queues
        self._load = load

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        if self._load is not None and expert_ids.device.type == "cpu":
            self._load.count(layer, expert_ids.numpy())
        num_tokens, num_choices = expert_ids.shape
        results = self.compute(layer, rows, expert_ids, weights, num_tokens * num_choices)
        return _LocalHandle(results=results, num_choices=num_choices)

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, _LocalHandle)
        return add_choices(handle.results, handle.num_choices)

    def direct(self, num_layers: int, x: torch.Tensor) -> None:
        return None

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        return self.dispatch(layer, rows, expert_ids, weights)

    def tend(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass
