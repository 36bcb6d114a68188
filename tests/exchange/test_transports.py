"""The table of transports, and the choices that the configuration offers."""

from __future__ import annotations

import pytest
import torch

from actors.exchange.context import ExpertContext
from actors.exchange.transports import TRANSPORTS, has_expert_actors, open_expert
from actors.protocol.settings import ExchangeSettings
from cluster.config.cluster_config import EXCHANGES
from tests.exchange.processes import context_of


class NoExperts:
    """Experts that must not be used, since the transport has no expert actors."""

    def __init__(self) -> None:
        self.on_change = lambda: None

    def serve(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        raise AssertionError

    def tables(self) -> None:
        raise AssertionError


def test_the_configuration_offers_every_transport_and_no_other() -> None:
    assert tuple(TRANSPORTS) == EXCHANGES


def test_only_local_has_no_expert_actors() -> None:
    assert [name for name in TRANSPORTS if not has_expert_actors(name)] == ["local"]


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(ValueError, match="exchange transport is 'pigeon', expected one of links"):
        has_expert_actors("pigeon")


def test_an_expert_actor_of_a_transport_that_has_none_is_refused() -> None:
    context = ExpertContext(
        exchange_context=context_of(ExchangeSettings(transport="local"), "float32"),
        index=0,
        incarnation="",
        experts=NoExperts(),
    )
    with pytest.raises(ValueError, match="exchange transport is 'local', which has no expert actors"):
        open_expert(context)
