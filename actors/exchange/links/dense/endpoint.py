"""All links of a dense actor: its listener, its exchange, and how it joins a membership."""

from __future__ import annotations

import socket
import threading

from actors.errors import DeadlineError, LinkError
from actors.exchange.context import DenseContext
from actors.exchange.deadline import Deadline
from actors.exchange.links.dense.exchange import LinksExchange
from actors.exchange.links.dense.hedging import WaitLimits
from actors.exchange.links.dense.listener import LinkListener
from actors.exchange.links.handshake import LinkHello
from actors.exchange.links.link import Link
from actors.exchange.links.open_link import (
    DENSE_RANK,
    LinkNames,
    link_context,
    link_key,
    link_rendezvous,
    make_link,
)
from actors.protocol.messages import Membership


class DenseLinks:
    """A dense actor's end. Its one exchange lives as long as the actor does; links come and go."""

    def __init__(self, context: DenseContext) -> None:
        exchange_context, settings = context.exchange_context, context.exchange_context.settings
        self._index = context.index
        self._store = context.store
        self._settings = settings
        self._link_context = link_context(exchange_context)
        limits = WaitLimits(
            late=min(settings.late_seconds, settings.deadline_seconds),
            dead=settings.deadline_seconds,
            park=settings.park_deadline_seconds,
        )
        self.exchange = LinksExchange(exchange_context.num_experts, limits, context.load, context.on_change)
        peers = self.exchange.peers
        self._listener = LinkListener(
            exchange_context.node_ip,
            context.store,
            context.incarnation,
            settings.connect_deadline_seconds,
            self._make_link,
            peers.has_link,
            peers.attach,
        )
        context.use_exchange(self.exchange)

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when all expert actors of the membership are linked and get rows for their experts.

        Raises DeadlineError naming the actors that did not link within the connect deadline; the others are
        used all the same. Raises LinkError when `stop` is set meanwhile; then the previous membership stays
        in use.
        """
        peers = self.exchange.peers
        deadline = Deadline(seconds=self._settings.connect_deadline_seconds)
        peers.announce(membership)
        self._listener.admit(membership)
        missing = peers.wait_until_linked(membership, deadline, stop)
        if missing and stop.is_set():
            raise LinkError(", ".join(missing), None, "given up while it came up")
        peers.settle(membership)
        if missing:
            raise DeadlineError(", ".join(missing), None, "link", deadline.seconds)

    def lost(self) -> tuple[str, ...]:
        return self.exchange.peers.lost()

    def suspected(self) -> tuple[str, ...]:
        return self.exchange.peers.suspected()

    def close(self) -> None:
        """Close the listener and end all links. The exchange itself is closed by its user."""
        self._listener.close()
        self.exchange.interrupt()

    def _make_link(self, hello: LinkHello, connection: socket.socket) -> Link:
        names = LinkNames(
            peer=f"expert-{hello.expert_index}",
            key=link_key(self._index, hello.expert_index, hello.incarnation),
            rank=DENSE_RANK,
        )
        rendezvous = link_rendezvous(self._store, hello.epoch, self._settings.connect_deadline_seconds)
        return make_link(self._link_context, names, connection, rendezvous)
