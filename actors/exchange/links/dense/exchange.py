"""The star of links, seen from a dense actor: rows go to holders of their experts, results come back, whatever dies.

Legend: T tokens, H hidden, K experts per token, n results of one message.

    rows [T, H]  --by holder-->  message to a holder: rows [t, H] with routing [t, K]
    arrived [T * K, H], a stretch for each message  <--  message from a holder: results [n, H]
    combined [T, H]  <--gathered by (t, k) and added--  arrived

    a link ends, or keeps silent past its deadline    it is dropped; what it owes goes to other holders
    an answer is late                                 its rows go to another holder as well; the first answer counts
    an expert has no holder                           its rows are parked until one has been linked

A request has a number of its own and an answer carries it, so a late answer is known as such. What the results of a
dispatch are does not depend on any of this, to the bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from actors.errors import DeadlineError, ExpertFailedError, LinkError, NoHolderError
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Handle
from actors.exchange.links.dense.in_flight import Dispatch, Request
from actors.exchange.links.dense.kernel_exchange import MAX_ROWS, DirectTurns
from actors.exchange.links.dense.peers import Peer, Roster
from actors.exchange.links.dense.sender import Sender, WaitLimits
from actors.exchange.message import FAILURE, NOT_HELD, RESULTS, Message

logger = logging.getLogger(__name__)

MAX_UNDER_WAY = 4
"""Dispatches that may wait for their combine: each keeps its rows and results in memory."""

_MAX_WAIT_SECONDS = 1.0
"""How often deadlines are looked at during a long wait: what is late is still being learnt from other answers."""


class LinksExchange:
    """Exchange over whatever links `roster` has; they come and go while it lives.

    One thread calls dispatch, combine, tend and close; any may call the rest.
    """

    def __init__(
        self, num_experts: int, limits: WaitLimits, load: ExpertLoad, on_change: Callable[[], None]
    ) -> None:
        """on_change: called, from any thread, when the links or what is held behind them have changed."""
        self._limits = limits
        self._on_change = on_change
        self.roster = Roster(num_experts, self._note_change)
        self._load = load
        self._sender = Sender(self.roster, num_experts, limits)
        self._placed_by = self._sender.table
        """The table by which what is parked was last tried."""
        self._under_way: list[Dispatch] = []
        self._turns: DirectTurns | None = None

    @property
    def is_ready(self) -> bool:
        """Whether every expert has a holder, as far as is known."""
        return not self._sender.is_closed and self.roster.table.is_complete

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self._refresh()
        if len(self._under_way) == MAX_UNDER_WAY:
            raise ValueError(f"a dispatch while {MAX_UNDER_WAY} others are under way")
        # On CUDA this is the layer's one sync: the host must know how many rows go where.
        expert_ids, weights = expert_ids.cpu(), weights.cpu()
        dispatch = Dispatch.of(layer, rows, expert_ids, weights)
        ids = expert_ids.numpy()
        self._load.count(layer, ids)
        self._under_way.append(dispatch)
        try:
            if len(ids) == 1:
                self._sender.send_one(dispatch, expert_ids[0].tolist())
            elif len(ids):
                self._sender.send_all(dispatch, ids)
        except BaseException:
            self._abandon(dispatch)
            raise
        return dispatch

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, Dispatch)
        try:
            while handle.num_owed:
                self._turn(handle)
        except BaseException:
            self._abandon(handle)
            raise
        if handle.owed is None:
            self._under_way.remove(handle)
        else:
            self._abandon(handle)  # Somebody may still be computing what another one has answered.
        return handle.result()

    def direct(self, num_layers: int, x: torch.Tensor) -> DirectTurns | None:
        self._refresh()
        if self._under_way or len(x) > MAX_ROWS or x.device.type != "cpu" or not self.is_ready:
            return None
        turns = self._turns
        if turns is None or (turns.table, turns.num_layers) != (self._sender.table, num_layers):
            turns = self._turns = DirectTurns.make(self._sender, self._load, num_layers)
        if turns is None or not turns.is_usable:
            return None
        turns.begin(x)
        return turns

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        turns, self._turns = self._turns, None  # What it has lent may still be on its way.
        dispatch = turns.take_over(layer, rows, expert_ids, weights) if turns is not None else None
        if turns is None or dispatch is None:
            return self.dispatch(layer, rows, expert_ids, weights)
        self._under_way.append(dispatch)
        for peer in turns.hand_back():
            self._take_all(peer)
        return dispatch

    def tend(self) -> None:
        """Look after the links while no step is under way: notice what has ended, drop what keeps silent. Never waits."""
        self._refresh()
        self._take_news(0.0)

    def interrupt(self) -> None:
        """End all links; a call under way, and every later one, raises LinkError. From any thread; idempotent."""
        self._sender.is_closed = True
        self.roster.retire_all()

    def close(self) -> None:
        self.interrupt()
        self._sender.adopt()
        self._sender.board.close()

    def _note_change(self) -> None:
        self._sender.board.ring()
        self._on_change()

    def _refresh(self) -> None:
        """Take in what other threads have changed since the last look."""
        if self._sender.is_closed:
            raise LinkError("expert actors", None, "this exchange is closed")
        if self.roster.table is not self._sender.table:
            self._sender.adopt()
        if self._placed_by is not self._sender.table:
            self._placed_by = self._sender.table
            self._sender.check_at = 0.0  # A late answer's rows may have somewhere to go now.
            for dispatch in list(self._under_way):
                if len(dispatch.parked):
                    parked, dispatch.parked = dispatch.parked, dispatch.parked[:0]
                    self._sender.place(dispatch, parked, frozenset())

    def _turn(self, dispatch: Dispatch) -> None:
        """Wait for whatever happens next on any link, and take it in."""
        self._refresh()
        if dispatch.failure is not None:
            raise dispatch.failure
        now = time.monotonic()
        wake_at = self._sender.check_at
        if len(dispatch.parked) and dispatch.parked_until is not None:
            if now >= dispatch.parked_until:
                raise self._no_holder(dispatch)
            wake_at = min(wake_at, dispatch.parked_until)
        if dispatch.num_owed:
            self._take_news(min(max(0.0, wake_at - now), _MAX_WAIT_SECONDS))

    def _take_news(self, seconds: float) -> None:
        is_quiet = True
        for peer, takes_more in self._sender.board.wait(seconds):
            is_quiet = False
            self._take_all(peer, takes_more)
        # Only now: what has arrived while this process stood still is not late.
        if is_quiet or time.monotonic() >= self._sender.check_at:
            self._check_deadlines()

    def _take_all(self, peer: Peer, takes_more: bool = False) -> None:
        """Take in what has come on a link, and send what is left where it takes more."""
        try:
            if takes_more:
                peer.link.flush()
                self._sender.board.watch_sending(peer)
            while (message := peer.link.receive()) is not None:
                self._take(peer, message)
                if not peer.owed:
                    break  # Nothing more can come.
        except LinkError as error:
            self._sender.lose(peer, error)

    def _take(self, peer: Peer, message: Message) -> None:
        """An answer, to the oldest question. One to nobody's question is dropped."""
        header = message.header
        if header.epoch != peer.link.epoch or not peer.owed or header.sequence != peer.owed[0].sequence:
            return
        request = peer.owed.popleft()
        now = time.monotonic()
        self._sender.patience.learn(request.num_results, now - max(request.sent_at, peer.heard_at))
        peer.heard_at, peer.num_heard = now, peer.link.num_received
        if peer.is_suspected:
            self.roster.suspect(peer, False)
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
            self.roster.refuse(peer, [int(expert) for expert in message.failure().split(",")])
            self._sender.adopt()
            self._sender.send_again(request)
        elif header.kind == FAILURE:
            dispatch.last_failure = ExpertFailedError(peer.name, dispatch.layer, message.failure())
            request.tried |= {peer.name}
            self._sender.send_again(request)

    def _check_deadlines(self) -> None:
        """Drop who has kept silent for too long, send the rows of late answers elsewhere as well."""
        now, self._sender.check_at = time.monotonic(), math.inf
        for peer in self._sender.table.peers:
            if peer.is_gone or not peer.owed:
                continue
            if peer.link.num_received != peer.num_heard:
                peer.num_heard, peer.heard_at = peer.link.num_received, now  # A long answer is coming in.
            oldest = peer.owed[0]
            since = max(oldest.sent_at, peer.heard_at)
            if now >= since + self._limits.dead:
                layer = None if oldest.dispatch is None else oldest.dispatch.layer
                self._sender.lose(peer, DeadlineError(peer.name, layer, "message", self._limits.dead))
                continue
            patience = self._sender.patience.seconds(oldest.num_results)
            if not peer.is_suspected and now >= since + patience:
                self.roster.suspect(peer, True)
                self._sender.adopt()
            if peer.is_suspected:
                for request in list(peer.owed):
                    self._hedge(peer, request)
            due = self._limits.dead if peer.is_suspected else patience
            self._sender.check_at = min(self._sender.check_at, since + due)

    def _hedge(self, peer: Peer, request: Request) -> None:
        """Send the rows of a late answer to sound holders as well, where there are some."""
        dispatch = request.dispatch
        if request.is_hedged or dispatch is None or not dispatch.num_owed:
            return
        left = self._sender.uncovered(dispatch, request)
        ids = dispatch.expert_ids.reshape(-1).numpy()[left]
        peers = self._sender.table.peers
        has_other = [
            any(not peers[holder].is_suspected for holder in self._sender.table.holders[expert])
            for expert in ids
        ]
        if any(has_other):
            logger.warning("%s is late in layer %d: its rows go elsewhere too", peer.name, dispatch.layer)
            request.is_hedged = all(has_other)
            self._sender.place(dispatch, left[has_other], request.tried)

    def _no_holder(self, dispatch: Dispatch) -> NoHolderError:
        experts = np.unique(dispatch.expert_ids.reshape(-1).numpy()[dispatch.parked]).tolist()
        return NoHolderError(dispatch.layer, tuple(experts), self._limits.park)

    def _abandon(self, dispatch: Dispatch) -> None:
        """Nobody waits for it any longer; answers that still come are dropped."""
        if dispatch in self._under_way:
            self._under_way.remove(dispatch)
        for peer in self._sender.table.peers:
            for request in peer.owed:
                if request.dispatch is dispatch:
                    request.dispatch = None
