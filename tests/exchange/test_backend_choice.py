from __future__ import annotations

import pytest
import torch

from actors.exchange.all_to_all import group
from actors.exchange.context import choose_backend
from actors.exchange.links import open_link
from actors.protocol.settings import ExchangeSettings

BACKENDS = {"links": open_link.BACKENDS, "all_to_all": group.BACKENDS}
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("transport", "device", "backend"),
    [
        ("links", CPU, "tcp"),
        ("links", CUDA, "nccl"),
        ("all_to_all", CPU, "gloo"),
        ("all_to_all", CUDA, "nccl"),
    ],
)
def test_auto_suits_the_device(transport: str, device: torch.device, backend: str) -> None:
    assert choose_backend(ExchangeSettings(transport=transport), device, BACKENDS[transport]) == backend


def test_gloo_carries_links_where_it_is_asked_for() -> None:
    settings = ExchangeSettings(transport="links", backend="gloo")
    assert choose_backend(settings, CPU, BACKENDS["links"]) == "gloo"


@pytest.mark.parametrize(
    ("transport", "backend", "device"),
    [
        ("links", "nccl", CPU),
        ("links", "gloo", CUDA),
        ("links", "mpi", CPU),
        ("all_to_all", "tcp", CPU),
        ("all_to_all", "gloo", CUDA),
    ],
)
def test_a_backend_that_does_not_fit_is_refused(transport: str, backend: str, device: torch.device) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with pytest.raises(ValueError, match=f"exchange backend is '{backend}', expected auto or"):
        choose_backend(settings, device, BACKENDS[transport])
