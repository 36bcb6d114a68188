"""An exchange while processes die, hang, leave, come back or live in another epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from actors.errors import DeadlineError, ExchangeError, LinkError, StaleEpochError
from actors.exchange.interface import Exchange
from actors.protocol.messages import ExpertMember, Membership
from actors.protocol.settings import ExchangeSettings
from tests.exchange.peers import ALL
from tests.exchange.processes import (
    DenseSide,
    ExpertProcess,
    ExpertProcesses,
    Join,
    Star,
    Stop,
    linked,
    spread,
)
from tests.exchange.test_conformance import Batch, batches, check

TRANSPORTS = [
    pytest.param("links", "tcp", id="links-tcp"),
    pytest.param("links", "gloo", id="links-gloo"),
    pytest.param("all_to_all", "gloo", id="all-to-all-gloo"),
]
every_transport = pytest.mark.parametrize(("transport", "backend"), TRANSPORTS)
every_link = pytest.mark.parametrize("backend", ["tcp", "gloo"])
DTYPE = "bfloat16"


@cache
def small() -> Batch:
    """A small batch, for the first and the last expert."""
    return next(one for one in batches(DTYPE) if one.name.startswith("17 tokens"))


@cache
def large() -> Batch:
    return batches(DTYPE)[-1]


@contextmanager
def traffic(exchange: Exchange) -> Iterator[list[float]]:
    """Exchange rows in a thread all the time and check the results. Yields the seconds of each exchange."""
    seconds: list[float] = []
    is_ending = threading.Event()

    def run() -> None:
        while not is_ending.is_set():
            started_at = time.monotonic()
            check(exchange, small())
            seconds.append(time.monotonic() - started_at)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            while len(seconds) < 5 and not running.done():
                time.sleep(0.005)
            yield seconds
            time.sleep(0.1)
        finally:
            is_ending.set()
            running.result(60)


@every_link
def test_with_a_replica_a_killed_actor_costs_a_moment(processes: ExpertProcesses, backend: str) -> None:
    settings = ExchangeSettings(backend=backend, max_rows=4096)
    with linked(processes, settings, DTYPE, [ALL, ALL]) as star:
        for one in (small(), large()):
            check(star.exchange, one)
        with traffic(star.exchange) as seconds:
            star.experts[1].kill()
            num_before = len(seconds)
            while len(seconds) < num_before + 20:
                time.sleep(0.005)
        assert max(seconds) < 2
        assert star.dense[0].links is not None
        assert star.dense[0].links.exchange.peers.lost() == ("expert-1",)
        assert star.dense[0].links.exchange.is_ready


def test_with_a_replica_a_hung_actor_costs_a_moment_and_is_used_again_later(
    processes: ExpertProcesses,
) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, [ALL, ALL]) as star:
        assert star.dense[0].links is not None
        peers = star.dense[0].links.exchange.peers
        with traffic(star.exchange) as seconds:
            star.experts[0].pause()
            num_before = len(seconds)
            while len(seconds) < num_before + 20:
                time.sleep(0.005)
            assert peers.suspected() == ("expert-0",)
            star.experts[0].resume()
            deadline = time.monotonic() + 10
            while peers.suspected():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert max(seconds) < 2
        assert peers.lost() == ()


@every_link
@pytest.mark.parametrize("is_hung", [False, True], ids=["killed", "hung"])
def test_without_a_replica_a_layer_waits_for_the_restarted_actor(
    processes: ExpertProcesses, backend: str, is_hung: bool
) -> None:
    settings = ExchangeSettings(backend=backend)
    owned = spread(2)
    with linked(processes, settings, DTYPE, owned) as star, traffic(star.exchange) as seconds:
        victim = star.experts[1]
        if is_hung:
            victim.pause()
            time.sleep(0.3)
        victim.kill()
        star.experts[1] = processes.take(2)[1]
        star.load(1, owned[1])
        star.join(owned)
        num_before = len(seconds)
        while len(seconds) < num_before + 5:
            time.sleep(0.005)


@every_link
def test_a_newer_membership_keeps_the_links_that_work(processes: ExpertProcesses, backend: str) -> None:
    with linked(processes, ExchangeSettings(backend=backend), DTYPE, spread(2), num_dense=2) as star:
        links = [side.links for side in star.dense]
        assert all(one is not None for one in links)
        before = [one.exchange.peers.table.peers for one in links if one is not None]
        with traffic(star.exchanges[0]), traffic(star.exchanges[1]):
            star.join(spread(2))
        assert [one.exchange.peers.table.peers for one in links if one is not None] == before
        assert [expert.report().state for expert in star.experts] == ["ready", "ready"]


def test_a_link_that_only_one_end_believes_in_is_made_anew(processes: ExpertProcesses) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, spread(2)) as star:
        assert star.dense[0].links is not None
        peers = star.dense[0].links.exchange.peers
        peer = peers.table.peers[1]
        # The dense actor has dropped the peer, but the peer does not notice, as if a cable had been cut and
        # mended.
        peer.link.end = lambda: None  # type: ignore[method-assign]
        peers.lose(peer)
        assert peers.lost() == ("expert-1",)
        star.join(spread(2))
        check(star.exchange, small())
        assert peers.lost() == () and peers.table.peers[1] is not peer


def test_experts_move_between_actors_while_rows_run(processes: ExpertProcesses) -> None:
    settings = ExchangeSettings(max_rows=4096)
    with linked(processes, settings, DTYPE, [ALL[:8], ALL[8:]]) as star:
        with traffic(star.exchange):
            assert star.experts[0].hold(ALL[8:12]) == "loaded"
            assert star.experts[1].hold(ALL[4:8]) == "loaded"
            assert star.experts[0].report().experts == ALL[:12]
            star.join([ALL[:12], ALL[4:]])
            star.join([(*ALL[:4], *ALL[8:12]), (*ALL[4:8], *ALL[12:])])
            star.experts[0].drop(ALL[4:8])
            star.experts[1].drop(ALL[8:12])
        check(star.exchange, large())
        assert star.experts[0].report().experts == (*ALL[:4], *ALL[8:12])


def test_an_actor_that_joins_a_running_service_is_used_and_one_that_leaves_is_not_missed(
    processes: ExpertProcesses,
) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, [ALL, (15,)]) as star, traffic(star.exchange):
        star.join([ALL])
        assert star.experts[1].report().lost_links == ("dense-0",)
        star.load(1, ALL)
        star.join([ALL, ALL])
        star.join([(), ALL])
        assert star.dense[0].links is not None
        assert [p.name for p in star.dense[0].links.exchange.peers.table.peers] == ["expert-1"]


def test_one_dense_actor_that_leaves_disturbs_no_other(processes: ExpertProcesses) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, spread(2), num_dense=2) as star:
        with traffic(star.exchanges[1]) as seconds:
            check(star.exchanges[0], small())
            star.dense[0].close()
            for expert in star.experts:
                wait_until_lost(expert)
                assert expert.report().lost_links == ("dense-0",)
        assert max(seconds) < 1


@every_transport
def test_an_expert_actor_sees_that_a_dense_actor_has_left(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, DTYPE, spread(2)) as star:
        assert [expert.report().state for expert in star.experts] == ["ready", "ready"]
        exchange = star.exchange
        exchange.close()
        exchange.close()
        for expert in star.experts:
            wait_until_lost(expert)
            assert expert.report().lost_links == ("dense-0",)
        with pytest.raises(LinkError, match="closed"):
            check(exchange, small())


def test_the_collective_ends_when_a_peer_is_killed_in_mid_step(processes: ExpertProcesses) -> None:
    with collective(processes) as star:
        victim = star.experts[1]
        victim.pause()  # It cannot answer before it dies.
        timer = threading.Timer(0.3, victim.kill)
        timer.start()
        started_at = time.monotonic()
        with pytest.raises(LinkError, match=r"closed|broken"):
            check(star.exchange, small())
        assert time.monotonic() - started_at < 3
        timer.join()
        with pytest.raises(LinkError):
            check(star.exchange, small())


def test_the_collective_gives_up_on_a_hung_peer_at_the_deadline(processes: ExpertProcesses) -> None:
    with collective(processes, deadline_seconds=0.7) as star:
        star.experts[0].pause()
        started_at = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.7 s"):
            check(star.exchange, small())
        assert 0.4 < time.monotonic() - started_at < 5


def test_the_collective_ends_when_a_peer_leaves(processes: ExpertProcesses) -> None:
    with collective(processes) as star:
        star.experts[1].ask(Stop())
        started_at = time.monotonic()
        with pytest.raises(LinkError, match=r"closed|broken"):
            check(star.exchange, small())
        assert time.monotonic() - started_at < 2


def test_the_collective_is_made_anew_by_a_newer_membership(processes: ExpertProcesses) -> None:
    with collective(processes) as star:
        before = star.exchange
        star.join(spread(2))
        check(star.exchange, small())
        with pytest.raises(ExchangeError):
            check(before, small())


@every_transport
def test_a_membership_that_is_not_newer_is_refused(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend)
    with linked(processes, settings, DTYPE, spread(1)) as star:
        present = star.membership
        for epoch in (present.epoch, present.epoch - 1):
            older = Membership(epoch=epoch, dense=present.dense, experts=present.experts)
            error = star.experts[0].ask(Join(membership=older))
            assert isinstance(error, StaleEpochError)
            assert (error.epoch, error.current) == (epoch, present.epoch)
        check(star.exchange, small())


def test_an_expert_actor_with_an_older_epoch_is_refused_by_the_listener(processes: ExpertProcesses) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, spread(1)) as star:
        old = star.membership
        star.join(spread(1))
        star.load(0, ALL)
        error = star.experts[0].ask(Join(membership=renamed(old, star.experts[0].incarnation)))
        assert isinstance(error, StaleEpochError)
        assert (error.epoch, error.current) == (old.epoch, star.membership.epoch)


def test_an_expert_actor_that_the_membership_does_not_name_is_refused_by_the_listener(
    processes: ExpertProcesses,
) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, spread(1)) as star:
        present = star.membership
        star.load(0, ALL)
        # The new actor believes that the membership means it; the dense actor knows better.
        error = star.experts[0].ask(Join(membership=renamed(present, star.experts[0].incarnation)))
        assert isinstance(error, LinkError)
        assert f"epoch {present.epoch} names no expert actor 0 of incarnation" in error.reason


def test_an_expert_actor_that_looks_for_another_dense_actor_is_refused(processes: ExpertProcesses) -> None:
    with linked(processes, ExchangeSettings(), DTYPE, spread(1)) as star:
        present = star.membership
        (dense,) = present.dense
        elsewhere = type(dense)(
            index=0, store_host=dense.store_host, store_port=dense.store_port, incarnation="another"
        )
        epoch = processes.next_epoch()
        assert star.dense[0].links is not None
        star.dense[0].links._listener.admit(Membership(epoch=epoch, dense=(dense,), experts=present.experts))
        membership = Membership(epoch=epoch, dense=(elsewhere,), experts=present.experts)
        error = star.experts[0].ask(Join(membership=membership))
        assert isinstance(error, LinkError) and "it looks for dense actor 'another'" in error.reason


@every_transport
def test_a_dense_actor_gives_up_on_a_peer_that_never_comes(transport: str, backend: str) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, connect_deadline_seconds=0.5)
    with (
        lonely(settings) as (side, membership),
        pytest.raises(DeadlineError, match=r"expert-7: no .* within 0\.5 s"),
    ):
        side.join(membership)


@every_transport
def test_meeting_peers_can_be_given_up(transport: str, backend: str) -> None:
    with lonely(ExchangeSettings(transport=transport, backend=backend)) as (side, membership):
        stop = threading.Event()
        threading.Timer(0.2, stop.set).start()
        started_at = time.monotonic()
        with pytest.raises(LinkError, match="given up"):
            side.join(membership, stop)
        assert time.monotonic() - started_at < 5


def test_actors_that_were_reached_are_in_use_although_another_did_not_come(
    processes: ExpertProcesses,
) -> None:
    settings = ExchangeSettings(connect_deadline_seconds=1.0)
    with linked(processes, settings, DTYPE, [ALL, ALL]) as star:
        star.experts[1].kill()
        with pytest.raises(DeadlineError, match=r"expert-1: no link within 1 s"):
            star.dense[0].join(
                Membership(
                    epoch=processes.next_epoch(),
                    dense=star.membership.dense,
                    experts=star.membership.experts,
                )
            )
        check(star.exchange, small())


def test_too_many_rows_for_a_message_are_refused(processes: ExpertProcesses) -> None:
    with linked(processes, ExchangeSettings(max_rows=8), DTYPE, spread(1)) as star:
        with pytest.raises(ValueError, match="17 rows to one actor, max_rows is 8"):
            check(star.exchange, small())
        one = small()
        rows, ids, weights = one.rows[:8], one.expert_ids[:8], one.weights[:8]
        result = star.exchange.combine(star.exchange.dispatch(one.layer, rows, ids, weights))
        assert torch.equal(result, one.expected[:8])


@contextmanager
def collective(processes: ExpertProcesses, deadline_seconds: float = 30) -> Iterator[Star]:
    settings = ExchangeSettings(transport="all_to_all", deadline_seconds=deadline_seconds)
    with linked(processes, settings, DTYPE, spread(2)) as star:
        check(star.exchange, small())
        yield star


@contextmanager
def lonely(settings: ExchangeSettings) -> Iterator[tuple[DenseSide, Membership]]:
    """A dense side and a membership whose only expert actor does not exist."""
    side = DenseSide(settings, DTYPE)
    experts = (ExpertMember(index=7, experts=ALL, incarnation="none"),)
    try:
        yield side, Membership(epoch=1, dense=(side.member,), experts=experts)
    finally:
        side.close()


def renamed(membership: Membership, incarnation: str) -> Membership:
    """The membership with another incarnation of expert actor 0."""
    (expert,) = membership.experts
    other = ExpertMember(index=0, experts=expert.experts, incarnation=incarnation)
    return Membership(epoch=membership.epoch, dense=membership.dense, experts=(other,))


def wait_until_lost(expert: ExpertProcess) -> None:
    deadline = time.monotonic() + 5
    while expert.report().state != "lost":
        assert time.monotonic() < deadline, "the actor never noticed"
        time.sleep(0.01)
