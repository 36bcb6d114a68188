"""The transport "local": all experts are in the dense actor's process. Tests compare the others with it.

Legend: T tokens, H hidden, K experts per token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from actors.exchange.combine import add_choices
from actors.exchange.context import DenseContext
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Combined, Handle
from actors.protocol.messages import Membership


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _LocalHandle:
    total: torch.Tensor
    """[T, H]"""


class LocalExchange:
    """Computes in `dispatch`. No peer can be lost, so no ExchangeError is raised."""

    is_ready = True
    kernels = None

    def __init__(
        self,
        compute: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor],
        load: ExpertLoad | None = None,
        combined: Combined | None = None,
    ) -> None:
        """`compute` is `LocalExperts.forward`. `combined`, if given, replaces `compute`.

        `load` counts routes on CPU only.
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

    def maintain(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


class DenseLocal:
    """A dense actor's end. It computes with its own experts from the first membership on."""

    def __init__(self, context: DenseContext) -> None:
        self._context = context

    def join(self, membership: Membership, stop: threading.Event) -> None:
        experts = self._context.experts
        assert experts is not None
        self._context.use_exchange(LocalExchange(experts.forward, self._context.load, experts.combined))

    def lost(self) -> tuple[str, ...]:
        return ()

    def suspected(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Do nothing: there are no links."""
