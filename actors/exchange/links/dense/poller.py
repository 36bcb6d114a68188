"""Polls all links of a dense actor at once; other threads can wake the thread that polls."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import suppress

from actors.exchange.links.dense.peers import Peer

_READ = select.POLLIN
_WRITE = select.POLLOUT


class LinkPoller:
    """One thread polls; any thread may call `wake`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        """An eventfd that is readable after `wake`; -1 when this poller is closed."""
        self._poll.register(self.wakeup, _READ)
        self._peers: dict[int, Peer] = {}
        """The watched peers by file descriptor."""
        self._descriptors: dict[Peer, int] = {}

    def add(self, peer: Peer) -> None:
        """Watch a peer's link. A second call for the same peer does nothing."""
        if peer not in self._descriptors:
            descriptor = peer.link.fileno()
            self._descriptors[peer] = descriptor
            self._peers[descriptor] = peer
            self._poll.register(descriptor, _READ | _WRITE if peer.link.has_unsent else _READ)

    def remove(self, peer: Peer) -> None:
        """Stop watching a peer; do nothing if it is not watched. Its link must still be open."""
        descriptor = self._descriptors.pop(peer, None)
        if descriptor is not None:
            del self._peers[descriptor]
            self._poll.unregister(descriptor)

    def watch_sending(self, peer: Peer) -> None:
        """Poll a link for room to send while it has unsent bytes. Call this when that has changed."""
        descriptor = self._descriptors.get(peer)
        if descriptor is not None:
            self._poll.modify(descriptor, _READ | _WRITE if peer.link.has_unsent else _READ)

    def wait(self, seconds: float) -> Iterator[tuple[Peer, bool]]:
        """Yield (peer, whether its link takes more bytes) for each link on which something happens.

        Wait `seconds` at most, or until `wake` is called; yield nothing then.
        """
        for descriptor, events in self._poll.poll(seconds * 1000):
            if descriptor == self.wakeup:
                with suppress(BlockingIOError):
                    os.eventfd_read(self.wakeup)
            elif (peer := self._peers.get(descriptor)) is not None:
                yield peer, bool(events & _WRITE)

    def wake(self) -> None:
        """End the `wait` under way, or else the next one. Any thread may call it."""
        if self.wakeup >= 0:
            os.eventfd_write(self.wakeup, 1)

    def close(self) -> None:
        wakeup, self.wakeup = self.wakeup, -1
        if wakeup >= 0:
            os.close(wakeup)
