"""The one exchange interface: rows go to the experts that the router chose, weighted results come back.

Legend: T tokens, H hidden, K experts per token, N routed rows (N = T * K over all expert actors).

    before dispatch   rows [T, H], expert_ids [T, K], weights [T, K]
    at an actor       its rows [t, H] once each, expert_ids [t, K] with -1 for an expert of another actor
    on the way back   one row per valid (t, k), [n, H] in row-major order
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
    """A dispatch under way; opaque to the caller."""


class Exchange(Protocol):
    """Dispatch and combine for one dense actor. Not thread-safe: one engine loop owns it."""

    @property
    def is_ready(self) -> bool:
        """Whether every expert can be reached, as far as is known. Any thread may ask."""

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        """Send rows [T, H] to a layer's experts: expert_ids [T, K] int64, weights [T, K] float32, T >= 0.

        The caller must not write to these tensors until the combine. Raises ExchangeError as combine does.
        """

    def combine(self, handle: Handle) -> torch.Tensor:
        """Wait for the results of one dispatch and add them up: [T, H], in the rows' dtype, on their device.

        If the transport can send rows again, the death of a peer only makes the wait longer. Raises
        ExpertFailedError if the holders of the experts got the rows and could not compute them, and
        NoHolderError if no holder came in time. Any other ExchangeError ends the exchange. After an error the
        results of the whole layer are unknown; its rows may be sent again, since experts keep no state.
        """

    @property
    def kernels(self) -> ExchangeKernels | None:
        """Lets the kernels exchange rows by themselves; None if they cannot do so over this transport."""

    def maintain(self) -> None:
        """Check the links. Call this about once a second while no step is under way; it never waits."""

    def interrupt(self) -> None:
        """Make a call under way, and every later call, raise an ExchangeError. For any thread; idempotent."""

    def close(self) -> None:
        """End all links; the peers notice at once. Idempotent."""


class ExchangeKernels(Protocol):
    """Lets the kernels exchange the rows of a decoding step by themselves, layer after layer."""

    def begin(self, num_layers: int, x: torch.Tensor) -> KernelExchange | None:
        """Prepare the exchanges of a step with rows like x [T, H]; None if the kernels cannot do them now.

        Raises ExchangeError as `Exchange.dispatch` does.
        """

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        """Dispatch as `Exchange.dispatch` does, for the layer in which the kernels have stopped."""


class KernelExchange(Protocol):
    """The exchanges of one decoding step."""

    @property
    def task(self) -> ExchangeTask:
        """The argument of the kernels, valid until the next `begin`."""

    def end(self) -> None:
        """Record what the kernels have done since `begin`. Call it when they have returned."""


Serve: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""The computation of an expert actor: (layer, rows [T, H] on the device, expert_ids [T, K] and weights [T, K]
on the host, num_results) -> [N, H]. Raises NotHeldError if the actor does not hold all of these experts."""

Combined: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, rows [T, H], expert_ids [T, K], weights [T, K]) -> the sum of each token's results [T, H].

For few rows it only queues device work. It accepts padding rows, which have no expert, at the end."""


class LocalExperts(Protocol):
    """All experts of the model, in the process of the dense actor."""

    @property
    def combined(self) -> Combined | None:
        """Computes and adds up in one call; None if only `forward` can compute."""

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
    """Called when the result of `tables` is about to become outdated; the transport sets this function."""

    def serve(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        """Compute as `Serve` says."""

    def tables(self) -> ServeTables | None:
        """Tables of the experts with which `serve` computes; None if the kernels cannot compute with them."""


class NotHeldError(Exception):
    """Rows came for experts that this actor does not hold. Peers get a message instead of this error."""

    def __init__(self, experts: Sequence[int]) -> None:
        super().__init__(tuple(experts))
        self.experts = tuple(experts)

    def __str__(self) -> str:
        return ",".join(str(expert) for expert in self.experts)
