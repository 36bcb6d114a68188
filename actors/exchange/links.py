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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actors.errors import DeadlineError, ExpertFailedError, LinkError, NoHolderError
from actors.exchange.flight import Dispatch, Request, Targets
from actors.exchange.interface import Handle
from actors.exchange.load import ExpertLoad
from actors.exchange.message import FAILURE, MAGIC, NOT_HELD, RESULTS, ROWS, Header, Message
from actors.exchange.patience import Patience, PatienceLimits
from actors.exchange.roster import Peer, Roster
from actors.exchange.split import NOBODY, Ids, Share, assign_rows, portion_out, split_rows
from actors.exchange.switchboard import Switchboard

logger = logging.getLogger(__name__)

MAX_UNDER_WAY = 4
"""Dispatches that may wait for their combine: each keeps its rows and results in memory."""

_MAX_WAIT_SECONDS = 1.0
"""How often deadlines are looked at during a long wait: what is late is still being learnt from other answers."""
_NONE: Ids = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitLimits:
    """How long what may take; seconds."""

    late: float
    """No answer is late before that, however fast answers usually are."""
    dead: float
    """A link that owes an answer and keeps silent for so long is dropped."""
    park: float
    """Rows wait for a holder of their experts for so long."""


class LinksExchange:
    """Exchange over whatever links `roster` has; they come and go while it lives.

    One thread calls dispatch, combine, tend and close; any may call the rest.
    """

    def __init__(
        self, num_experts: int, limits: WaitLimits, load: ExpertLoad, on_change: Callable[[], None]
    ) -> None:
        """on_change: called, from any thread, when the links or what is held behind them have changed."""
        self._num_experts = num_experts
        self._limits = limits
        self._on_change = on_change
        self._board = Switchboard()
        self._is_closed = False
        self.roster = Roster(num_experts, self._note_change)
        self._load = load
        self._table = self.roster.table
        self._placed_by = self._table
        """The table by which what is parked was last tried."""
        self._patience = Patience(PatienceLimits(shortest=limits.late, longest=limits.dead))
        self._next_sequence = 0
        self._under_way: list[Dispatch] = []
        self._check_at = math.inf
        """When an answer may be late, at the earliest."""

    @property
    def is_ready(self) -> bool:
        """Whether every expert has a holder, as far as is known."""
        return not self._is_closed and self.roster.table.is_complete

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self._refresh()
        if len(self._under_way) == MAX_UNDER_WAY:
            raise ValueError(f"a dispatch while {MAX_UNDER_WAY} others are under way")
        # On CUDA this is the layer's one sync: the host must know how many rows go where.
        expert_ids, weights = expert_ids.cpu(), weights.cpu()
        num_routes = expert_ids.numel()
        dispatch = Dispatch(
            layer=layer,
            rows=rows,
            expert_ids=expert_ids,
            weights=weights,
            arrived=rows.new_empty((num_routes, rows.shape[1])),
            num_owed=num_routes,
        )
        ids = expert_ids.numpy()
        self._load.count(layer, ids)
        self._under_way.append(dispatch)
        try:
            if len(ids) == 1:
                self._send_one(dispatch, expert_ids[0].tolist())
            elif len(ids):
                self._send_all(dispatch, ids)
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

    def tend(self) -> None:
        """Look after the links while no step is under way: notice what has ended, drop what keeps silent. Never waits."""
        self._refresh()
        self._take_news(0.0)

    def interrupt(self) -> None:
        """End all links; a call under way, and every later one, raises LinkError. From any thread; idempotent."""
        self._is_closed = True
        self.roster.retire_all()

    def close(self) -> None:
        self.interrupt()
        self._adopt()
        self._board.close()

    def _note_change(self) -> None:
        self._board.ring()
        self._on_change()

    def _refresh(self) -> None:
        """Take in what other threads have changed since the last look."""
        if self._is_closed:
            raise LinkError("expert actors", None, "this exchange is closed")
        if self.roster.table is not self._table:
            self._adopt()
        if self._placed_by is not self._table:
            self._placed_by = self._table
            self._check_at = 0.0  # A late answer's rows may have somewhere to go now.
            for dispatch in list(self._under_way):
                if len(dispatch.parked):
                    parked, dispatch.parked = dispatch.parked, dispatch.parked[:0]
                    self._place(dispatch, parked, frozenset())

    def _adopt(self) -> None:
        """Use the newest table. What retired peers still owe goes elsewhere."""
        self._table, retired = self.roster.take_changes()
        for peer in retired:
            peer.is_gone = True
            self._board.remove(peer)
            peer.link.close()
        for peer in self._table.peers:
            self._board.add(peer)
        if self._is_closed:
            return
        for peer in retired:
            owed, peer.owed = peer.owed, deque()
            for request in owed:
                self._send_again(request)

    def _send_one(self, dispatch: Dispatch, ids: list[int]) -> None:
        """The first sending of a dispatch of one token: as `_send_all`, in a fraction of the time."""
        table = self._table
        owners = table.owners or _choose(ids, table.holders)
        groups: dict[int, list[int]] = {}
        for choice, expert in enumerate(ids):
            groups.setdefault(owners[expert], []).append(choice)
        scales = dispatch.weights[0].tolist()
        stretches = [dispatch.next_stretch(targets) for targets in groups.values()]
        for (holder, targets), stretch in zip(groups.items(), stretches, strict=True):
            message = None if holder == NOBODY else self._outgoing(table.peers[holder])
            if message is None:
                self._place(dispatch, np.array(targets), frozenset())
                continue
            request = self._request(dispatch, targets, stretch)
            sent_ids = ids
            if len(groups) > 1:
                sent_ids = [expert if choice in targets else -1 for choice, expert in enumerate(ids)]
            peer = table.peers[holder]
            epoch, number = peer.link.epoch, request.sequence
            header = Header(MAGIC, ROWS, epoch, number, dispatch.layer, 1, len(targets), 0)
            message.write_row(header, sent_ids, scales).copy_(dispatch.rows)
            self._post(peer, request, message)

    def _send_all(self, dispatch: Dispatch, ids: Ids) -> None:
        """The first sending: a share and a stretch for each holder, and one for what nobody holds."""
        table = self._table
        shares, left = self._split(ids, frozenset())
        stretches = [dispatch.next_stretch(share.targets) for share in shares]
        dispatch.next_stretch(left)
        for share, stretch in zip(shares, stretches, strict=True):
            self._send(dispatch, table.peers[share.holder], share, stretch, frozenset())
        if len(left):
            self._place(dispatch, left, frozenset())

    def _place(self, dispatch: Dispatch, targets: Ids, tried: frozenset[str]) -> None:
        """Send targets of a dispatch once more, to others than have tried, or park them where there is nobody."""
        dispatch.keep_book()
        table = self._table
        ids = dispatch.expert_ids.numpy()
        wanted = np.full(ids.size, -1, dtype=np.int64)
        wanted[targets] = ids.reshape(-1)[targets]
        shares, left = self._split(wanted.reshape(ids.shape), tried)
        for share in shares:
            self._send(dispatch, table.peers[share.holder], share, None, tried)
        if not len(left):
            return
        if tried and all(table.holders[expert] for expert in wanted[left]):
            dispatch.failure = dispatch.last_failure
            return
        if dispatch.parked_until is None:
            dispatch.parked_until = time.monotonic() + self._limits.park
            logger.warning("layer %d waits for a holder of its experts", dispatch.layer)
        dispatch.parked = np.concatenate((dispatch.parked, left))

    def _split(self, ids: Ids, tried: frozenset[str]) -> tuple[list[Share], Ids]:
        """Shares of ids [T, K], and the targets whose experts have no holder but those that have tried."""
        table = self._table
        holders = table.holders
        if tried:
            holders = tuple(
                tuple(place for place in able if table.peers[place].name not in tried) for able in holders
            )
        if table.owner_of is not None and not tried:
            return split_rows(ids, table.owner_of[ids]), _NONE
        counts = np.bincount(ids.reshape(-1) + 1, minlength=self._num_experts + 1)[1:].tolist()
        routed = [(expert, count) for expert, count in enumerate(counts) if count]
        assigned = assign_rows(ids, portion_out(routed, holders), self._num_experts)
        return split_rows(ids, assigned), np.flatnonzero((assigned == NOBODY) & (ids >= 0))

    def _send(
        self,
        dispatch: Dispatch,
        peer: Peer,
        share: Share,
        stretch: torch.Tensor | None,
        tried: frozenset[str],
    ) -> None:
        message = self._outgoing(peer)
        if message is None:
            self._place(dispatch, share.targets, tried)
            return
        request = self._request(dispatch, share.targets, stretch, tried)
        num_tokens = len(share.tokens)
        header = Header(
            MAGIC,
            ROWS,
            peer.link.epoch,
            request.sequence,
            dispatch.layer,
            num_tokens,
            request.num_results,
            0,
        )
        scales = dispatch.weights.numpy()
        if num_tokens == len(scales):
            message.write_rows(header, share.expert_ids, scales).copy_(dispatch.rows)
        else:
            payload = message.write_rows(header, share.expert_ids, scales[share.tokens])
            tokens = torch.from_numpy(share.tokens).to(payload.device)
            torch.index_select(dispatch.rows, 0, tokens, out=payload)
        self._post(peer, request, message)

    def _outgoing(self, peer: Peer) -> Message | None:
        """A message to fill; None where the peer is gone, or is as of now."""
        if peer.is_gone:
            return None
        try:
            return peer.link.outgoing()
        except LinkError as error:
            self._lose(peer, error)
            return None

    def _request(
        self,
        dispatch: Dispatch,
        targets: Targets,
        stretch: torch.Tensor | None,
        tried: frozenset[str] = frozenset(),
    ) -> Request:
        sequence = self._next_sequence
        self._next_sequence += 1
        return Request(
            sequence=sequence,
            dispatch=dispatch,
            targets=targets,
            num_results=len(targets),
            stretch=stretch,
            sent_at=time.monotonic(),
            tried=tried,
        )

    def _post(self, peer: Peer, request: Request, message: Message) -> None:
        peer.owed.append(request)
        late_at = request.sent_at + self._patience.seconds(request.num_results)
        if late_at < self._check_at:
            self._check_at = late_at
        try:
            peer.link.send(message)
        except LinkError as error:
            self._lose(peer, error)
            return
        if peer.link.has_unsent:
            self._board.watch_sending(peer)

    def _turn(self, dispatch: Dispatch) -> None:
        """Wait for whatever happens next on any link, and take it in."""
        self._refresh()
        if dispatch.failure is not None:
            raise dispatch.failure
        now = time.monotonic()
        wake_at = self._check_at
        if len(dispatch.parked) and dispatch.parked_until is not None:
            if now >= dispatch.parked_until:
                raise self._no_holder(dispatch)
            wake_at = min(wake_at, dispatch.parked_until)
        if dispatch.num_owed:
            self._take_news(min(max(0.0, wake_at - now), _MAX_WAIT_SECONDS))

    def _take_news(self, seconds: float) -> None:
        is_quiet = True
        for peer, takes_more in self._board.wait(seconds):
            is_quiet = False
            try:
                if takes_more:
                    peer.link.flush()
                    self._board.watch_sending(peer)
                while (message := peer.link.receive()) is not None:
                    self._take(peer, message)
                    if not peer.owed:
                        break  # Nothing more can come.
            except LinkError as error:
                self._lose(peer, error)
        # Only now: what has arrived while this process stood still is not late.
        if is_quiet or time.monotonic() >= self._check_at:
            self._check_deadlines()

    def _take(self, peer: Peer, message: Message) -> None:
        """An answer, to the oldest question. One to nobody's question is dropped."""
        header = message.header
        if header.epoch != peer.link.epoch or not peer.owed or header.sequence != peer.owed[0].sequence:
            return
        request = peer.owed.popleft()
        now = time.monotonic()
        self._patience.learn(request.num_results, now - max(request.sent_at, peer.heard_at))
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
            self._adopt()
            self._send_again(request)
        elif header.kind == FAILURE:
            dispatch.last_failure = ExpertFailedError(peer.name, dispatch.layer, message.failure())
            request.tried |= {peer.name}
            self._send_again(request)

    def _send_again(self, request: Request) -> None:
        """What a request will not bring goes elsewhere, unless it has or somebody else owes it too."""
        dispatch = request.dispatch
        if dispatch is None or not dispatch.num_owed:
            return
        left = self._uncovered(dispatch, request)
        if len(left):
            self._place(dispatch, left, request.tried)

    def _uncovered(self, dispatch: Dispatch, request: Request) -> Ids:
        """Targets of a request that are owed, and not by a sound peer in another request."""
        is_left = np.zeros(len(dispatch.arrived), dtype=np.bool_)
        is_left[request.targets] = dispatch.keep_book()[request.targets]
        for peer in self._table.peers:
            if not (peer.is_gone or peer.is_suspected):
                for other in peer.owed:
                    if other.dispatch is dispatch and other is not request:
                        is_left[other.targets] = False
        return np.flatnonzero(is_left)

    def _check_deadlines(self) -> None:
        """Drop who has kept silent for too long, send the rows of late answers elsewhere as well."""
        now, self._check_at = time.monotonic(), math.inf
        for peer in self._table.peers:
            if peer.is_gone or not peer.owed:
                continue
            if peer.link.num_received != peer.num_heard:
                peer.num_heard, peer.heard_at = peer.link.num_received, now  # A long answer is coming in.
            oldest = peer.owed[0]
            since = max(oldest.sent_at, peer.heard_at)
            if now >= since + self._limits.dead:
                layer = None if oldest.dispatch is None else oldest.dispatch.layer
                self._lose(peer, DeadlineError(peer.name, layer, "message", self._limits.dead))
                continue
            patience = self._patience.seconds(oldest.num_results)
            if not peer.is_suspected and now >= since + patience:
                self.roster.suspect(peer, True)
                self._adopt()
            if peer.is_suspected:
                for request in list(peer.owed):
                    self._hedge(peer, request)
            due = self._limits.dead if peer.is_suspected else patience
            self._check_at = min(self._check_at, since + due)

    def _hedge(self, peer: Peer, request: Request) -> None:
        """Send the rows of a late answer to sound holders as well, where there are some."""
        dispatch = request.dispatch
        if request.is_hedged or dispatch is None or not dispatch.num_owed:
            return
        left = self._uncovered(dispatch, request)
        ids = dispatch.expert_ids.reshape(-1).numpy()[left]
        peers = self._table.peers
        has_other = [
            any(not peers[holder].is_suspected for holder in self._table.holders[expert]) for expert in ids
        ]
        if any(has_other):
            logger.warning("%s is late in layer %d: its rows go elsewhere too", peer.name, dispatch.layer)
            request.is_hedged = all(has_other)
            self._place(dispatch, left[has_other], request.tried)

    def _lose(self, peer: Peer, error: LinkError | DeadlineError) -> None:
        """Drop a peer; what it owes goes elsewhere."""
        if not peer.is_gone:
            logger.warning("%s is dropped: %s", peer.name, error)
            peer.is_gone = True
            self.roster.lose(peer)
            self._adopt()

    def _no_holder(self, dispatch: Dispatch) -> NoHolderError:
        experts = np.unique(dispatch.expert_ids.reshape(-1).numpy()[dispatch.parked]).tolist()
        return NoHolderError(dispatch.layer, tuple(experts), self._limits.park)

    def _abandon(self, dispatch: Dispatch) -> None:
        """Nobody waits for it any longer; answers that still come are dropped."""
        if dispatch in self._under_way:
            self._under_way.remove(dispatch)
        for peer in self._table.peers:
            for request in peer.owed:
                if request.dispatch is dispatch:
                    request.dispatch = None


def _choose(ids: list[int], holders: Sequence[Sequence[int]]) -> dict[int, int]:
    """The holder of each of a token's experts."""
    counts: dict[int, int] = {}
    for expert in ids:
        counts[expert] = counts.get(expert, 0) + 1
    return {portion.expert: portion.holder for portion in portion_out(list(counts.items()), holders)}
