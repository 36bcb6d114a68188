"""The expert actors to which a dense actor is linked, and which of them hold which expert.

    attach      a link has come up (listener.py)
    announce    a membership is coming; until it is settled, the present one counts as well
    settle      only that membership counts now; links to actors that it does not name are retired
    lose        a link has ended (sender.py)

Many threads make changes. Every change makes a new `RoutingTable`, and no table is changed later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from actors.exchange.deadline import Deadline
from actors.exchange.links.dense.in_flight import Dispatch, Request
from actors.exchange.links.handshake import is_same
from actors.exchange.links.link import Link
from actors.exchange.row_assignment import NOBODY, Ids
from actors.protocol.messages import ExpertMember, Membership

_SLICE_SECONDS = 0.05


@dataclass(kw_only=True, slots=True, eq=False)
class Peer:
    """One linked expert actor. All fields but the first three belong to the thread that sends rows."""

    index: int
    incarnation: str
    link: Link
    owed: deque[Request] = field(default_factory=deque)
    """Unanswered requests in the order of sending, which is also the order of their answers."""
    heard_at: float = 0.0
    """When bytes last came from this peer, on the monotonic clock."""
    num_heard: int = 0
    """`link.num_received` at `heard_at`."""
    is_suspected: bool = False
    """Whether an answer is late. Other holders are preferred until the peer answers."""
    is_gone: bool = False
    """Whether the peer was dropped or retired; nothing more is sent to it."""
    lacks: frozenset[int] = frozenset()
    """Experts that the peer has reported as not held, whatever the membership says."""

    @property
    def name(self) -> str:
        return self.link.peer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingTable:
    """The linked peers and the experts they hold. A peer is identified by its index in `peers`."""

    peers: tuple[Peer, ...]
    holders: tuple[tuple[int, ...], ...]
    """The holders of each expert that are not suspected; if there are none, its suspected holders."""
    owners: tuple[int, ...] | None
    """The only holder of each expert; None unless every expert has exactly one holder."""
    owner_of: Ids | None
    """`owners` as an array [E + 1], with NOBODY for expert id -1 at the end."""

    @property
    def is_complete(self) -> bool:
        """Whether every expert has a holder."""
        return all(self.holders)

    def uncovered(self, dispatch: Dispatch, request: Request) -> Ids:
        """Targets of a request that are still owed and that no sound peer owes in another request."""
        is_left = np.zeros(len(dispatch.arrived), dtype=np.bool_)
        is_left[request.targets] = dispatch.keep_book()[request.targets]
        for peer in self.peers:
            if not (peer.is_gone or peer.is_suspected):
                for other in peer.owed:
                    if other.dispatch is dispatch and other is not request:
                        is_left[other.targets] = False
        return np.flatnonzero(is_left)


class Peers:
    """Thread-safe. `on_change` is called after each change, from the thread that made it."""

    def __init__(self, num_experts: int, on_change: Callable[[], None]) -> None:
        self._num_experts = num_experts
        self._on_change = on_change
        self._changed = threading.Condition()
        self._in_use: Membership | None = None
        self._coming: Membership | None = None
        self._peers: dict[int, Peer] = {}
        self._retired: list[Peer] = []
        self.is_closed = False
        """Whether `close` was called."""
        self.table = self._make_table()

    def attach(self, index: int, incarnation: str, link: Link) -> None:
        """Use a new link from now on, in place of an older link to the same actor."""
        peer = Peer(index=index, incarnation=incarnation, link=link)
        with self._changed:
            if self.is_closed or not self._members_of(peer):
                self._retire(peer)  # Or no membership names this actor any longer.
            else:
                if index in self._peers:
                    self._retire(self._peers[index])
                self._peers[index] = peer
            self._update()

    def has_link(self, index: int, incarnation: str, epoch: int) -> bool:
        """Whether the link that came up in that epoch to that process is working."""
        with self._changed:
            peer = self._peers.get(index)
            return (
                peer is not None
                and (peer.incarnation, peer.link.epoch) == (incarnation, epoch)
                and not peer.link.is_ended()
            )

    def announce(self, membership: Membership) -> None:
        with self._changed:
            self._coming = membership
            self._update()

    def wait_until_linked(
        self, membership: Membership, deadline: Deadline, stop: threading.Event
    ) -> tuple[str, ...]:
        """Wait until all expert actors are linked, the deadline has passed or `stop` is set.

        Return the names of those that are not linked.
        """
        with self._changed:
            while True:
                missing = self._lost(membership.experts)
                if not missing or deadline.has_passed or stop.is_set():
                    return missing
                self._changed.wait(min(_SLICE_SECONDS, deadline.remaining_seconds))

    def settle(self, membership: Membership) -> None:
        with self._changed:
            self._in_use = membership
            if self._coming is not None and self._coming.epoch <= membership.epoch:
                self._coming = None
            for peer in list(self._peers.values()):
                peer.lacks = frozenset()
                if not self._members_of(peer):
                    self._retire(peer)
            self._update()

    def lose(self, peer: Peer) -> None:
        with self._changed:
            self._retire(peer)
            self._update()

    def suspect(self, peer: Peer, is_suspected: bool) -> None:
        with self._changed:
            peer.is_suspected = is_suspected
            self._update()

    def refuse(self, peer: Peer, experts: Iterable[int]) -> None:
        """Record that a peer does not hold these experts, whatever the membership says, until `settle`."""
        with self._changed:
            peer.lacks |= frozenset(experts)
            self._update()

    def take_changes(self) -> tuple[RoutingTable, list[Peer]]:
        """The newest table, and the peers retired since the last call; the caller closes their links."""
        with self._changed:
            retired, self._retired = self._retired, []
            return self.table, retired

    def close(self) -> None:
        """Retire all peers. A link that comes up later is ended at once. Idempotent."""
        with self._changed:
            self.is_closed = True
            for peer in list(self._peers.values()):
                self._retire(peer)
            self._update()

    def lost(self) -> tuple[str, ...]:
        """Expert actors of the newest membership without a working link."""
        with self._changed:
            newest = self._coming or self._in_use
            return self._lost(newest.experts) if newest is not None else ()

    def suspected(self) -> tuple[str, ...]:
        """Expert actors whose answer is late."""
        return tuple(peer.name for peer in self.table.peers if peer.is_suspected)

    def _lost(self, members: Iterable[ExpertMember]) -> tuple[str, ...]:
        return tuple(f"expert-{member.index}" for member in members if not self._is_linked(member))

    def _is_linked(self, member: ExpertMember) -> bool:
        peer = self._peers.get(member.index)
        return peer is not None and is_same(member.incarnation, peer.incarnation) and not peer.link.is_ended()

    def _members_of(self, peer: Peer) -> list[ExpertMember]:
        """The entries for a peer in the present and in the coming membership."""
        return [
            member
            for membership in (self._in_use, self._coming)
            if membership is not None
            for member in membership.experts
            if member.index == peer.index and is_same(member.incarnation, peer.incarnation)
        ]

    def _retire(self, peer: Peer) -> None:
        if self._peers.get(peer.index) is peer:
            del self._peers[peer.index]
        peer.link.end()
        self._retired.append(peer)

    def _update(self) -> None:
        self.table = self._make_table()
        self._changed.notify_all()
        self._on_change()

    def _make_table(self) -> RoutingTable:
        peers = tuple(self._peers[index] for index in sorted(self._peers))
        held = [
            frozenset(expert for member in self._members_of(peer) for expert in member.experts) - peer.lacks
            for peer in peers
        ]
        holders = []
        for expert in range(self._num_experts):
            able = [place for place in range(len(peers)) if expert in held[place]]
            sound = [place for place in able if not peers[place].is_suspected]
            holders.append(tuple(sound or able))
        is_simple = all(len(able) == 1 for able in holders)
        owners = tuple(able[0] for able in holders) if is_simple else None
        return RoutingTable(
            peers=peers,
            holders=tuple(holders),
            owners=owners,
            owner_of=np.array([*owners, NOBODY]) if owners is not None else None,
        )
