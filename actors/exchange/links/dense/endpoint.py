"""All links of a dense actor: its door, its exchange, and how it joins a membership."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from torch._C._distributed_c10d import Store

from actors.errors import DeadlineError, LinkError
from actors.exchange.context import Site
from actors.exchange.deadline import Deadline
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.links.dense.exchange import LinksExchange
from actors.exchange.links.dense.hedging import WaitLimits
from actors.exchange.links.dense.listener import LinkDoor
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
    """Open from its making to `close`; memberships come and go, and sequences run on throughout."""

    def __init__(
        self,
        site: Site,
        index: int,
        incarnation: str,
        store: Store,
        load: ExpertLoad,
        on_change: Callable[[], None],
    ) -> None:
        """`store` is what this actor hosts. on_change: see LinksExchange."""
        settings = site.settings
        self._index = index
        self._store = store
        self._settings = settings
        self._link_context = link_context(site)
        limits = WaitLimits(
            late=min(settings.late_seconds, settings.deadline_seconds),
            dead=settings.deadline_seconds,
            park=settings.park_deadline_seconds,
        )
        self.exchange = LinksExchange(site.num_experts, limits, load, on_change)
        roster = self.exchange.roster
        self._door = LinkDoor(
            site.node_ip,
            store,
            incarnation,
            settings.connect_deadline_seconds,
            self._make_link,
            roster.has_link,
            roster.attach,
        )

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Returns when all expert actors of the membership are linked and asked for what it says they hold.

        Raises DeadlineError naming those that did not come within the connect deadline, the others are in use
        then; LinkError when `stop` is set meanwhile: the membership before is still in use then.
        """
        roster = self.exchange.roster
        deadline = Deadline(seconds=self._settings.connect_deadline_seconds)
        roster.announce(membership)
        self._door.admit(membership)
        missing = roster.wait_until_linked(membership, deadline, stop)
        if missing and stop.is_set():
            raise LinkError(", ".join(missing), None, "given up while it came up")
        roster.settle(membership)
        if missing:
            raise DeadlineError(", ".join(missing), None, "link", deadline.seconds)

    def close(self) -> None:
        """Close the door and end all links. Whoever uses the exchange closes that."""
        self._door.close()
        self.exchange.interrupt()

    def _make_link(self, hello: LinkHello, connection: socket.socket) -> Link:
        names = LinkNames(
            peer=f"expert-{hello.expert_index}",
            key=link_key(self._index, hello.expert_index, hello.incarnation),
            rank=DENSE_RANK,
        )
        rendezvous = link_rendezvous(self._store, hello.epoch, self._settings.connect_deadline_seconds)
        return make_link(self._link_context, names, connection, rendezvous)
