"""What an actor gives to its transport when it opens it, and the choice of the backend that carries rows."""

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
    """The part that dense and expert actors share: where they are, and the shape of rows."""

    settings: ExchangeSettings
    node_ip: str
    """The address at which this actor is reached."""
    hidden_size: int
    num_experts: int
    """Experts of the model."""
    num_choices: int
    """Experts per token."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseContext:
    """What a dense actor gives to its transport."""

    exchange_context: ExchangeContext
    index: int
    """This actor's number among the dense actors."""
    incarnation: str
    """Unique to this process; a membership names the process by it."""
    store: Store
    """The store that this actor hosts, where links and groups meet (`rendezvous.host_store`)."""
    load: ExpertLoad
    """The counter of routes."""
    experts: LocalExperts | None
    """All experts, if the transport has no expert actors."""
    use_exchange: Callable[[Exchange], None]
    """Called with the exchange to use from now on. The dense actor closes every exchange that it got."""
    on_change: Callable[[], None]
    """Called, from any thread, when experts may have become reachable or unreachable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertContext:
    """What an expert actor gives to its transport."""

    exchange_context: ExchangeContext
    index: int
    """This actor's number among the expert actors."""
    incarnation: str
    """Unique to this process; a membership names the process by it."""
    experts: ServedExperts


def choose_backend(settings: ExchangeSettings, device: torch.device, backends: Sequence[str]) -> str:
    """The backend of a transport that carries rows; for "auto" the first that suits the device.

    NCCL suits CUDA devices only, all others suit CPUs only. Raises ValueError if the settings name a backend
    that does not suit the device or does not belong to the transport.
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
