"""An exchange that records where rows went."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from actors.exchange.interface import Exchange, Handle


@dataclass(slots=True)
class Recorder:
    """Records the routes of each dispatch and passes every call on to another exchange."""

    inner: Exchange
    routes: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Expert ids [T, K] and weights [T, K] of every dispatch."""

    kernels = None
    """None, since exchanges by the C kernels would bypass this class."""

    @property
    def is_ready(self) -> bool:
        return self.inner.is_ready

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self.routes.append((expert_ids.clone(), weights.clone()))
        return self.inner.dispatch(layer, rows, expert_ids, weights)

    def combine(self, handle: Handle) -> torch.Tensor:
        return self.inner.combine(handle)

    def maintain(self) -> None:
        self.inner.maintain()

    def interrupt(self) -> None:
        self.inner.interrupt()

    def close(self) -> None:
        self.inner.close()
