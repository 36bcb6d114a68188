"""What happens to an exchange when a peer dies, hangs, leaves or lives in another epoch."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from actors.checkpoint.presets import preset_config
from actors.errors import DeadlineError, ExchangeError, ExpertFailedError, LinkError, StaleEpochError
from actors.exchange.interface import Exchange
from actors.exchange.open import open_dense
from actors.exchange.rendezvous import host_store
from actors.messages import DenseMember, ExpertMember, Membership
from actors.settings import ExchangeSettings
from tests.exchange.processes import (
    NODE_IP,
    PRESET,
    ExpertProcess,
    ExpertProcesses,
    Join,
    Stop,
    linked,
    site_of,
    spread,
)

HIDDEN = preset_config(PRESET).hidden_size
TRANSPORTS = [
    pytest.param("links", "tcp", id="links-tcp"),
    pytest.param("links", "gloo", id="links-gloo"),
    pytest.param("all_to_all", "gloo", id="all-to-all-gloo"),
]
every_transport = pytest.mark.parametrize(("transport", "backend"), TRANSPORTS)


@every_transport
def test_a_killed_peer_is_noticed_at_once_in_mid_step(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, "bfloat16", spread(2)) as star:
        exchange_rows(star.exchange)
        victim = star.experts[1]
        victim.pause()  # So that it certainly has not answered when it dies.
        killed_at: list[float] = []

        def kill() -> None:
            killed_at.append(time.monotonic())
            victim.kill()

        timer = threading.Timer(0.3, kill)
        timer.start()
        with pytest.raises(LinkError, match=r"closed|broken"):
            exchange_rows(star.exchange)
        noticed_at = time.monotonic()
        timer.join()
        assert noticed_at - killed_at[0] < 2
        with pytest.raises(LinkError):
            exchange_rows(star.exchange)


@every_transport
def test_a_hung_peer_is_given_up_at_the_deadline(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, deadline_seconds=0.7)
    with linked(processes, settings, "bfloat16", spread(2)) as star:
        exchange_rows(star.exchange)
        star.experts[0].pause()
        started_at = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.7 s"):
            exchange_rows(star.exchange)
        assert 0.4 < time.monotonic() - started_at < 5


@every_transport
def test_an_expert_actor_sees_that_a_dense_actor_has_left(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, "bfloat16", spread(2)) as star:
        assert [expert.report().state for expert in star.experts] == ["ready", "ready"]
        star.exchange.close()
        star.exchange.close()
        for expert in star.experts:
            wait_until_lost(expert)
            assert "closed" in str(expert.report().detail["failure"])
        with pytest.raises(LinkError, match="closed"):
            exchange_rows(star.exchange)


@every_transport
def test_a_dense_actor_sees_that_an_expert_actor_has_left(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, "bfloat16", spread(2)) as star:
        exchange_rows(star.exchange)
        star.experts[1].ask(Stop())
        started_at = time.monotonic()
        with pytest.raises(LinkError, match=r"closed|broken"):
            exchange_rows(star.exchange)
        assert time.monotonic() - started_at < 2


@every_transport
def test_a_new_epoch_takes_the_place_of_the_old_one(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, "bfloat16", spread(2)) as star:
        exchange_rows(star.exchange)
        store, host, port = host_store(NODE_IP)
        membership = Membership(
            epoch=processes.next_epoch(),
            dense=(DenseMember(index=0, store_host=host, store_port=port),),
            experts=star.membership.experts,
        )
        for expert in star.experts:
            expert.send(Join(membership=membership))
        site = site_of(settings, "bfloat16")
        exchange = open_dense(site, membership.dense[0], membership, store)
        assert [expert.answer() for expert in star.experts] == [None, None]
        exchange_rows(exchange)
        with pytest.raises(ExchangeError):
            exchange_rows(star.exchange)
        exchange.close()


@every_transport
def test_a_membership_that_is_not_newer_is_refused(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, "bfloat16", spread(1)) as star:
        for epoch in (star.membership.epoch, star.membership.epoch - 1):
            older = Membership(epoch=epoch, dense=star.membership.dense, experts=star.membership.experts)
            error = star.experts[0].ask(Join(membership=older))
            assert isinstance(error, StaleEpochError)
            assert (error.epoch, error.current) == (epoch, star.membership.epoch)
        exchange_rows(star.exchange)


@every_transport
def test_a_dense_actor_gives_up_on_a_peer_that_never_comes(transport: str, backend: str) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, connect_deadline_seconds=0.5)
    store, host, port = host_store(NODE_IP)
    membership = lonely(host, port)
    with pytest.raises(DeadlineError, match=r"expert-7: no .* within 0\.5 s"):
        open_dense(site_of(settings, "bfloat16"), membership.dense[0], membership, store)


@every_transport
def test_meeting_peers_can_be_given_up(transport: str, backend: str) -> None:
    site = site_of(ExchangeSettings(transport=transport, backend=backend), "bfloat16")
    store, host, port = host_store(NODE_IP)
    membership = lonely(host, port)
    threading.Timer(0.2, site.stop.set).start()
    started_at = time.monotonic()
    with pytest.raises(LinkError, match="given up"):
        open_dense(site, membership.dense[0], membership, store)
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("backend", ["tcp", "gloo"])
def test_an_expert_that_cannot_compute_says_why(processes: ExpertProcesses, backend: str) -> None:
    settings = ExchangeSettings(transport="links", backend=backend)
    with (
        linked(processes, settings, "bfloat16", spread(1)) as star,
        pytest.raises(ExpertFailedError) as caught,
    ):
        exchange_rows(star.exchange, layer=99)
    assert caught.value.peer == "expert-0"
    assert caught.value.layer == 99
    assert "IndexError" in caught.value.reason


def test_too_many_rows_for_a_message_are_refused(processes: ExpertProcesses) -> None:
    settings = ExchangeSettings(transport="links", backend="tcp", max_rows=8)
    with (
        linked(processes, settings, "bfloat16", spread(1)) as star,
        pytest.raises(ValueError, match="9 rows to one actor, max_rows is 8"),
    ):
        exchange_rows(star.exchange, num_tokens=9)


def exchange_rows(exchange: Exchange, layer: int = 0, num_tokens: int = 5) -> None:
    """Rows for every expert actor."""
    rows = torch.ones(num_tokens, HIDDEN, dtype=torch.bfloat16)
    ids = torch.tensor([[0, 15]]).repeat(num_tokens, 1)
    result = exchange.combine(exchange.dispatch(layer, rows, ids, torch.ones(num_tokens, 2)))
    assert result.shape == rows.shape


def lonely(host: str, port: int) -> Membership:
    """A membership whose only expert actor does not exist."""
    return Membership(
        epoch=1,
        dense=(DenseMember(index=0, store_host=host, store_port=port),),
        experts=(ExpertMember(index=7, experts=tuple(range(16))),),
    )


def wait_until_lost(expert: ExpertProcess) -> None:
    deadline = time.monotonic() + 5
    while expert.report().state != "lost":
        assert time.monotonic() < deadline, "the actor never noticed"
        time.sleep(0.01)
