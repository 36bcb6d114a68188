"""What an actor brings to an exchange, and which backend suits it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.protocol.settings import ExchangeSettings

_CPU_BACKENDS = {"links": "tcp", "all_to_all": "gloo"}
"""What "auto" means on a CPU: TCP takes less processor time than gloo for small batches and sees a dead peer sooner."""
_BACKENDS = {"links": ("gloo", "tcp", "nccl"), "all_to_all": ("gloo", "nccl")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One actor's end of whatever exchange it takes part in."""

    settings: ExchangeSettings
    node_ip: str
    """The address that this actor is reached at."""
    hidden_size: int
    num_experts: int
    """Of the model."""
    num_choices: int
    """Experts per token."""
    dtype: torch.dtype
    device: torch.device


def choose_backend(settings: ExchangeSettings, device: torch.device) -> str:
    """What carries rows. Raises ValueError for a transport or backend that does not exist or suit the device."""
    backends = _BACKENDS.get(settings.transport)
    if backends is None:
        raise ValueError(
            f"exchange transport is {settings.transport!r}, expected one of {', '.join(_BACKENDS)}"
        )
    is_cuda = device.type == "cuda"
    if settings.backend == "auto":
        return "nccl" if is_cuda else _CPU_BACKENDS[settings.transport]
    if settings.backend not in backends or (settings.backend == "nccl") != is_cuda:
        fitting = [name for name in backends if (name == "nccl") == is_cuda]
        raise ValueError(
            f"exchange backend is {settings.backend!r}, expected auto or {' or '.join(fitting)} "
            f"for {settings.transport} on {device.type}"
        )
    return settings.backend
