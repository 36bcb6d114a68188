"""All links of a dense actor in one poll, and a bell with which other threads end the wait."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import suppress

from actors.exchange.links.dense.peers import Peer

_READ = select.POLLIN
_WRITE = select.POLLOUT


class LinkPoller:
    """One thread polls; any may ring."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        """Descriptor that is readable once somebody has rung; -1 when this is closed."""
        self._poll.register(self.wakeup, _READ)
        self._peers: dict[int, Peer] = {}
        """By descriptor."""
        self._descriptors: dict[Peer, int] = {}

    def add(self, peer: Peer) -> None:
        """Watch a peer's link. A second call does nothing."""
        if peer not in self._descriptors:
            descriptor = peer.link.fileno()
            self._descriptors[peer] = descriptor
            self._peers[descriptor] = peer
            self._poll.register(descriptor, _READ | _WRITE if peer.link.has_unsent else _READ)

    def remove(self, peer: Peer) -> None:
        """Forget a peer, known or not; its link must still be open."""
        descriptor = self._descriptors.pop(peer, None)
        if descriptor is not None:
            del self._peers[descriptor]
            self._poll.unregister(descriptor)

    def watch_sending(self, peer: Peer) -> None:
        """Tell when a link with unsent bytes takes more, and no longer when it has none."""
        descriptor = self._descriptors.get(peer)
        if descriptor is not None:
            self._poll.modify(descriptor, _READ | _WRITE if peer.link.has_unsent else _READ)

    def wait(self, seconds: float) -> Iterator[tuple[Peer, bool]]:
        """(peer, whether it takes more bytes) of links on which something happens; empty at the time or the bell."""
        for descriptor, events in self._poll.poll(seconds * 1000):
            if descriptor == self.wakeup:
                with suppress(BlockingIOError):
                    os.eventfd_read(self.wakeup)
            elif (peer := self._peers.get(descriptor)) is not None:
                yield peer, bool(events & _WRITE)

    def wake(self) -> None:
        """From any thread: end a wait under way, or the next one."""
        if self.wakeup >= 0:
            os.eventfd_write(self.wakeup, 1)

    def close(self) -> None:
        wakeup, self.wakeup = self.wakeup, -1
        if wakeup >= 0:
            os.close(wakeup)
