"""Waits for answers on all links of a dense actor and gives each answer to its dispatch.

A dispatch is under way from its first message to its combine. Answers that come after the combine are
dropped.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from actors.errors import ExpertFailedError, LinkError, NoHolderError
from actors.exchange.links.dense.hedging import Hedging
from actors.exchange.links.dense.in_flight import Dispatch
from actors.exchange.links.dense.peers import Peer, Peers
from actors.exchange.links.dense.poller import LinkPoller
from actors.exchange.links.dense.sender import Sender
from actors.exchange.message import FAILURE, NOT_HELD, RESULTS, Message

logger = logging.getLogger(__name__)

_MAX_WAIT_SECONDS = 1.0
"""A long wait is cut into parts of this length, and late answers are checked after each of them."""


class Receiver:
    """Waits for events on all links and handles them. One thread uses it."""

    def __init__(
        self, peers: Peers, sender: Sender, poller: LinkPoller, hedging: Hedging, park_seconds: float
    ) -> None:
        self.under_way: list[Dispatch] = []
        """Dispatches that wait for their combine."""
        self._peers = peers
        self._sender = sender
        self._poller = poller
        self._hedging = hedging
        self._park_seconds = park_seconds
        self._placed_by = sender.table
        """The routing table with which parked rows were last tried."""

    def refresh(self) -> None:
        """Adopt changes that other threads have made. Raises LinkError after the exchange is closed."""
        if self._peers.is_closed:
            raise LinkError("expert actors", None, "this exchange is closed")
        if self._peers.table is not self._sender.table:
            self._sender.adopt()
        if self._placed_by is not self._sender.table:
            self._placed_by = self._sender.table
            self._hedging.check_soon()  # The rows of a late answer may have another holder now.
            for dispatch in list(self.under_way):
                if len(dispatch.parked):
                    parked, dispatch.parked = dispatch.parked, dispatch.parked[:0]
                    self._sender.place(dispatch, parked, frozenset())

    def wait(self, dispatch: Dispatch) -> None:
        """Wait for the next event on any link and handle it. Raises the error that ends the dispatch."""
        self.refresh()
        if dispatch.failure is not None:
            raise dispatch.failure
        now = time.monotonic()
        wake_at = self._hedging.check_at
        if len(dispatch.parked) and dispatch.parked_until is not None:
            if now >= dispatch.parked_until:
                raise self._no_holder(dispatch)
            wake_at = min(wake_at, dispatch.parked_until)
        if dispatch.num_owed:
            self.handle_events(min(max(0.0, wake_at - now), _MAX_WAIT_SECONDS))

    def handle_events(self, seconds: float) -> None:
        """Handle events on the links, after waiting at most `seconds` for the first of them."""
        is_quiet = True
        for peer, takes_more in self._poller.wait(seconds):
            is_quiet = False
            self.take_all(peer, takes_more)
        # Only after reading: an answer that arrived while this process stood still is not late.
        if is_quiet or time.monotonic() >= self._hedging.check_at:
            self._hedging.check(self._sender)

    def take_all(self, peer: Peer, takes_more: bool = False) -> None:
        """Handle all messages that have come on a link; send unsent bytes first if the link takes more."""
        try:
            if takes_more:
                peer.link.flush()
                self._poller.watch_sending(peer)
            while (message := peer.link.receive()) is not None:
                self._take(peer, message)
                if not peer.owed:
                    break  # Nothing more can come.
        except LinkError as error:
            self._sender.lose(peer, error)

    def abandon(self, dispatch: Dispatch) -> None:
        """Stop waiting for a dispatch, and drop answers to it that still come."""
        if dispatch in self.under_way:
            self.under_way.remove(dispatch)
        for peer in self._sender.table.peers:
            for request in peer.owed:
                if request.dispatch is dispatch:
                    request.dispatch = None

    def _take(self, peer: Peer, message: Message) -> None:
        """Match an answer to the oldest outstanding request; drop it if none is outstanding."""
        header = message.header
        if header.epoch != peer.link.epoch or not peer.owed or header.sequence != peer.owed[0].sequence:
            return
        request = peer.owed.popleft()
        self._hedging.note_answer(peer, request)
        dispatch = request.dispatch
        if dispatch is None:
            return
        if header.kind == RESULTS:
            if (header.layer, header.num_results) != (dispatch.layer, request.num_results):
                peer.owed.appendleft(request)
                raise LinkError(
                    peer.name,
                    dispatch.layer,
                    f"answered {request.num_results} rows with {header.num_results} of layer {header.layer}",
                )
            dispatch.fulfil(request, message.payload())
        elif header.kind == NOT_HELD:
            logger.warning("%s does not hold experts %s", peer.name, message.failure())
            self._peers.refuse(peer, [int(expert) for expert in message.failure().split(",")])
            self._sender.adopt()
            self._sender.send_again(request)
        elif header.kind == FAILURE:
            dispatch.last_failure = ExpertFailedError(peer.name, dispatch.layer, message.failure())
            request.tried |= {peer.name}
            self._sender.send_again(request)

    def _no_holder(self, dispatch: Dispatch) -> NoHolderError:
        experts = np.unique(dispatch.expert_ids.reshape(-1).numpy()[dispatch.parked]).tolist()
        return NoHolderError(dispatch.layer, tuple(experts), self._park_seconds)
