"""What an actor brings to its transport, and which backend carries its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch._C._distributed_c10d import Store

from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Exchange, LocalExperts, ServedExperts
from actors.protocol.settings import ExchangeSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeContext:
    """What dense and expert actors have in common: where they are, and what rows look like."""

    settings: ExchangeSettings
    node_ip: str
    """The address at which this actor is reached."""
    hidden_size: int
    num_experts: int
    """Of the model."""
    num_choices: int
    """Experts per token."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseContext:
    """What a dense actor brings to its transport."""

    exchange_context: ExchangeContext
    index: int
    """Of this actor among the dense actors."""
    incarnation: str
    """Unique to this process: a membership names it by that."""
    store: Store
    """The store that this actor hosts, under whose keys links meet (`rendezvous.host_store`)."""
    load: ExpertLoad
    """Where exchanges count routes."""
    experts: LocalExperts | None
    """All experts, if the transport has no expert actors."""
    use_exchange: Callable[[Exchange], None]
    """Called with the exchange over which to compute from now on. The dense actor closes each of them."""
    on_change: Callable[[], None]
    """Called, from any thread, when experts may have come within reach or gone out of reach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertContext:
    """What an expert actor brings to its transport."""

    exchange_context: ExchangeContext
    index: int
    """Of this actor among the expert actors."""
    incarnation: str
    """Unique to this process: a membership names it by that."""
    experts: ServedExperts


def choose_backend(settings: ExchangeSettings, device: torch.device, backends: Sequence[str]) -> str:
    """Which of a transport's backends carries rows; for "auto" the first that suits the device.

    NCCL suits CUDA devices alone, all others suit CPUs alone. Raises ValueError if the settings name a
    backend that does not suit the device or is none of the transport's.
    """
    fitting = [name for name in backends if (name == "nccl") == (device.type == "cuda")]
    if settings.backend == "auto":
        return fitting[0]
    if settings.backend not in fitting:
        raise ValueError(
            f"exchange backend is {settings.backend!r}, expected auto or {' or '.join(fitting)} "
            f"for {settings.transport} on {device.type}"
        )
    return settings.backend
