"""All links of an expert actor: the server behind them, and how the actor joins a membership."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from actors.errors import ExchangeError, LinkError
from actors.exchange.context import ExpertContext
from actors.exchange.deadline import Deadline
from actors.exchange.links.expert.connect import JoinAttempt, connect
from actors.exchange.links.expert.server import LinkServer
from actors.exchange.links.handshake import NO_LINK, LinkHello, is_same
from actors.exchange.links.link import Link
from actors.exchange.links.open_link import (
    EXPERT_RANK,
    LinkNames,
    link_context,
    link_key,
    link_rendezvous,
    make_link,
)
from actors.exchange.rendezvous import connect_store, unless_stopped
from actors.protocol.messages import DenseMember, Membership


class ExpertLinks:
    """An expert actor's end. Dense actors come and go without disturbing each other."""

    def __init__(self, context: ExpertContext) -> None:
        exchange_context, experts = context.exchange_context, context.experts
        self._connect_seconds = exchange_context.settings.connect_deadline_seconds
        self._link_context = link_context(exchange_context)
        self._index, self._incarnation = context.index, context.incarnation
        self._guard = threading.Lock()
        self._links: dict[int, tuple[str, Link]] = {}
        """By index of the dense actor: the incarnation that the membership names, and the link."""
        self._server = LinkServer(experts.serve, exchange_context.settings.deadline_seconds, experts.tables)
        experts.on_change = self._server.wake

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when all dense actors of the membership are linked. Working links stay, others are made.

        Links to dense actors outside the membership are ended. Raises ExchangeError naming the dense actors
        that were not reached, or when `stop` is set meanwhile; the others are served all the same.
        """
        attempt = JoinAttempt(deadline=Deadline(seconds=self._connect_seconds), stop=stop)
        failures: list[ExchangeError] = []

        def link(dense: DenseMember) -> None:
            try:
                unless_stopped(
                    lambda: self._link_to(dense, membership.epoch, attempt), stop, f"dense-{dense.index}"
                )
            except ExchangeError as error:
                failures.append(error)

        if membership.dense:
            # All at once, so that a dense actor that hangs does not keep the others waiting.
            with ThreadPoolExecutor(len(membership.dense), thread_name_prefix="link-up") as pool:
                list(pool.map(link, membership.dense))
        named = {dense.index for dense in membership.dense}
        with self._guard:
            unwanted = [self._links.pop(index)[1] for index in [*self._links] if index not in named]
        for link_to_end in unwanted:
            self._server.remove(link_to_end)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise LinkError("dense actors", None, "; ".join(str(error) for error in failures))

    def lost(self, membership: Membership) -> tuple[str, ...]:
        """Dense actors of a membership without a working link."""
        return tuple(f"dense-{dense.index}" for dense in membership.dense if self._working(dense) is None)

    def close(self) -> None:
        """End all links and wait for the computation under way. Idempotent."""
        self._server.close()

    def _working(self, dense: DenseMember) -> Link | None:
        with self._guard:
            incarnation, link = self._links.get(dense.index, ("", None))
        is_working = link is not None and is_same(dense.incarnation, incarnation) and not link.is_ended()
        return link if is_working else None

    def _link_to(self, dense: DenseMember, epoch: int, attempt: JoinAttempt) -> None:
        peer = f"dense-{dense.index}"
        present = self._working(dense)
        hello = LinkHello(
            expert_index=self._index,
            incarnation=self._incarnation,
            dense_incarnation=dense.incarnation,
            epoch=epoch,
            linked_epoch=NO_LINK if present is None else present.epoch,
        )
        store = connect_store(dense.store_host, dense.store_port, peer, attempt.deadline, attempt.stop)
        connection = connect(attempt, store, peer, hello)
        if connection is None:
            return
        key = link_key(dense.index, self._index, self._incarnation)
        names = LinkNames(peer=peer, key=key, rank=EXPERT_RANK)
        rendezvous = link_rendezvous(store, epoch, self._connect_seconds)
        link = make_link(self._link_context, names, connection, rendezvous)
        with self._guard:
            is_late = attempt.stop.is_set()
            before = self._links.get(dense.index)
            if not is_late:
                self._links[dense.index] = (dense.incarnation, link)
        if is_late:
            link.close()
            return
        if before is not None:
            self._server.remove(before[1])
        self._server.add(link)
