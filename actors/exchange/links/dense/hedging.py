"""Handles late answers: a dense actor asks other holders as well, and drops silent peers.

    an answer is late                        its peer is suspected, and the rows go to sound holders as well
    an answer comes                          its peer is no longer suspected
    a peer keeps silent past its deadline    the peer is dropped, and the rows it owes go to other holders

The times of earlier answers decide when an answer is late (`hedge_delay.py`). These are hedged requests: Dean
and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

from actors.errors import DeadlineError
from actors.exchange.links.dense.hedge_delay import HedgeDelay, HedgeLimits
from actors.exchange.links.dense.in_flight import Request
from actors.exchange.links.dense.peers import Peer, Peers
from actors.exchange.links.dense.sender import Sender

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitLimits:
    """How long a dense actor waits, in seconds."""

    late: float
    """No answer counts as late before this time, however fast answers usually are."""
    dead: float
    """A peer that owes an answer and keeps silent for this long is dropped."""
    park: float
    """Rows whose experts have no holder wait this long for a holder."""


class Hedging:
    """Watches the answers that peers owe. One thread uses it."""

    def __init__(self, peers: Peers, limits: WaitLimits) -> None:
        self.delay = HedgeDelay(HedgeLimits(shortest=limits.late, longest=limits.dead))
        """How long an answer may take before it is late."""
        self.check_at = math.inf
        """The earliest time at which an answer may be late, on the monotonic clock. Call `check` then."""
        self._peers = peers
        self._dead_seconds = limits.dead

    def expect(self, request: Request) -> None:
        """Watch for the answer to a request that is just being sent."""
        late_at = request.sent_at + self.delay.seconds(request.num_results)
        if late_at < self.check_at:
            self.check_at = late_at

    def check_soon(self) -> None:
        """Make `check` due at once. Call it when holders change or requests were sent without `expect`."""
        self.check_at = 0.0

    def note_answer(self, peer: Peer, request: Request) -> None:
        """Learn how long the answer took that has just come, and stop suspecting its peer."""
        now = time.monotonic()
        self.delay.learn(request.num_results, now - max(request.sent_at, peer.heard_at))
        peer.heard_at, peer.num_heard = now, peer.link.num_received
        if peer.is_suspected:
            self._peers.suspect(peer, False)

    def check(self, sender: Sender) -> None:
        """Drop peers that have been silent for too long; send the rows of late answers elsewhere as well."""
        now, self.check_at = time.monotonic(), math.inf
        for peer in sender.table.peers:
            if peer.owed and not peer.is_gone:
                self._check_peer(sender, peer, now)

    def _check_peer(self, sender: Sender, peer: Peer, now: float) -> None:
        if peer.link.num_received != peer.num_heard:
            peer.num_heard, peer.heard_at = peer.link.num_received, now  # A long answer is coming in.
        oldest = peer.owed[0]
        since = max(oldest.sent_at, peer.heard_at)
        if now >= since + self._dead_seconds:
            layer = None if oldest.dispatch is None else oldest.dispatch.layer
            sender.lose(peer, DeadlineError(peer.name, layer, "message", self._dead_seconds))
            return
        delay = self.delay.seconds(oldest.num_results)
        if not peer.is_suspected and now >= since + delay:
            self._peers.suspect(peer, True)
            sender.adopt()
        if peer.is_suspected:
            for request in list(peer.owed):
                _hedge(sender, peer, request)
        due = self._dead_seconds if peer.is_suspected else delay
        self.check_at = min(self.check_at, since + due)


def _hedge(sender: Sender, peer: Peer, request: Request) -> None:
    """Send the rows of a late answer to sound holders as well, if there are any."""
    dispatch = request.dispatch
    if request.is_hedged or dispatch is None or not dispatch.num_owed:
        return
    table = sender.table
    left = table.uncovered(dispatch, request)
    ids = dispatch.expert_ids.reshape(-1).numpy()[left]
    has_other = [
        any(not table.peers[holder].is_suspected for holder in table.holders[expert]) for expert in ids
    ]
    if any(has_other):
        logger.warning("%s is late in layer %d: its rows go elsewhere too", peer.name, dispatch.layer)
        request.is_hedged = all(has_other)
        sender.place(dispatch, left[has_other], request.tried)
