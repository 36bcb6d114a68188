"""The one exchange interface: rows go to the experts that the router chose, weighted results come back.

Legend: T tokens, H hidden, K experts per token, N routed rows (N = T * K over all expert actors).

    before dispatch   rows [T, H], expert_ids [T, K], weights [T, K]
    at an actor       its rows [t, H] once each, expert_ids [t, K] with -1 where the expert is not there
    on the way back   one row per (token, expert) there, [n, H] in row-major order of the valid (t, k)
    after combine     rows [T, H] = sum over k of weights[t, k] * expert(rows[t])

The actor that computes a (token, expert) result rounds it to the model's dtype once, and the dense side adds
the K = 2 results of a token. Addition of two terms commutes exactly, so the sum does not depend on the
placement, on the number of actors or on who answered first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch

from actors.kernels.exchange import ExchangeTask
from actors.kernels.serve import ServeTables


class Handle(Protocol):
    """An exchange under way; opaque to the caller."""


class Exchange(Protocol):
    """Dispatch and combine for one dense actor. Not thread-safe: one engine loop owns it."""

    @property
    def is_ready(self) -> bool:
        """Whether every expert can be reached, as far as is known. From any thread."""

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        """Send rows [T, H] to a layer's experts: expert_ids [T, K] int64, weights [T, K] float32, T >= 0.

        Nobody may write to these until the combine. Raises ExchangeError as combine does.
        """

    def combine(self, handle: Handle) -> torch.Tensor:
        """Wait for the results of one dispatch and add them up: [T, H], in the rows' dtype, on their device.

        If the transport can send rows again, the death of a peer is only a longer wait. Raises
        ExpertFailedError if the holders of the experts got the rows and could not compute, and NoHolderError
        if no holder came in time. Any other ExchangeError ends the exchange. After an error the whole layer
        is unknown; its rows may be sent again, since experts keep no state.
        """

    @property
    def kernels(self) -> ExchangeKernels | None:
        """How the kernels exchange rows by themselves; None if this transport leaves them no way to do so."""

    def maintain(self) -> None:
        """Look after the links while no step is under way, about once a second. Never waits."""

    def interrupt(self) -> None:
        """Make a call under way, and every later one, raise an ExchangeError. From any thread; idempotent."""

    def close(self) -> None:
        """End all links; peers see their end at once. Idempotent."""


class ExchangeKernels(Protocol):
    """How the kernels exchange the rows of a decoding step by themselves, layer after layer."""

    def begin(self, num_layers: int, x: torch.Tensor) -> KernelExchange | None:
        """Prepare an exchange of rows like x [T, H]; None if the kernels cannot carry it out at this moment.

        Raises ExchangeError as `Exchange.dispatch` does.
        """

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        """`Exchange.dispatch` for the layer in which the kernels have stopped."""


class KernelExchange(Protocol):
    """The exchanges of one decoding step."""

    @property
    def task(self) -> ExchangeTask:
        """What the kernels are given; valid until the next `begin`."""

    def end(self) -> None:
        """Take note of what the kernels have done since `begin`. Call it once the kernels have returned."""


Serve: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""How an expert actor computes: (layer, rows [T, H] on the device, expert_ids [T, K] and weights [T, K] on
the host, num_results) -> [N, H]. Raises NotHeldError if the actor does not hold all of these experts."""


Combined: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, rows [T, H], expert_ids [T, K], weights [T, K]) -> the sum of each token's results [T, H].

For few rows it only queues device work, and it accepts rows without an expert at the end."""


class LocalExperts(Protocol):
    """All experts of the model, in the dense actor's own process."""

    @property
    def combined(self) -> Combined | None:
        """None if only `forward` can compute."""

    def forward(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        """Compute results [num_results, H] of rows [T, H] with expert_ids [T, K] and weights [T, K].

        All tensors are on the experts' device.
        """


class ServedExperts(Protocol):
    """The experts of an expert actor, as its transport uses them."""

    on_change: Callable[[], None]
    """Called when what `tables` returned is about to be outdated; the transport sets it."""

    def serve(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        """See `Serve`."""

    def tables(self) -> ServeTables | None:
        """What `serve` computes with, if the kernels can compute with it as well."""


class NotHeldError(Exception):
    """Rows came for experts that this actor does not hold. It stays in its process: peers get a message."""

    def __init__(self, experts: Sequence[int]) -> None:
        super().__init__(tuple(experts))
        self.experts = tuple(experts)

    def __str__(self) -> str:
        return ",".join(str(expert) for expert in self.experts)
