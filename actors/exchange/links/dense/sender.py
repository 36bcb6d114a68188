"""How a dense actor's rows get to holders of their experts, the first time and every further time.

Legend: T tokens, H hidden, K experts per token, E experts, n results of one message.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from actors.errors import DeadlineError, LinkError
from actors.exchange.links.dense.in_flight import Dispatch, Request, Targets
from actors.exchange.links.dense.peers import Peer, Peers
from actors.exchange.links.dense.poller import LinkPoller
from actors.exchange.message import MAGIC, ROWS, Header, Message
from actors.exchange.row_assignment import NOBODY, Ids, Share, assign_rows, portion_out, split_rows

logger = logging.getLogger(__name__)

_NONE: Ids = np.empty(0, dtype=np.int64)


class Sender:
    """Sends rows to holders of their experts, and keeps what each peer owes. One thread uses it.

    Nothing here waits, and the end of a peer is no error: what it owes goes to others, or is parked.
    """

    def __init__(
        self,
        peers: Peers,
        poller: LinkPoller,
        num_experts: int,
        park_seconds: float,
        on_send: Callable[[Request], None],
    ) -> None:
        """on_send: called for each request that is sent."""
        self.table = peers.table
        """The table by which rows are sent; `adopt` brings the newest."""
        self._peers = peers
        self._poller = poller
        self._num_experts = num_experts
        self._park_seconds = park_seconds
        self._on_send = on_send
        self._next_sequence = 0
        """Number of the next message with rows."""

    def adopt(self) -> None:
        """Use the newest table. What retired peers owe goes elsewhere, unless the exchange is closed."""
        self.table, retired = self._peers.take_changes()
        for peer in retired:
            peer.is_gone = True
            self._poller.remove(peer)
            peer.link.close()
        for peer in self.table.peers:
            self._poller.add(peer)
        if self._peers.is_closed:
            return
        for peer in retired:
            owed, peer.owed = peer.owed, deque()
            for request in owed:
                self.send_again(request)

    def send_one(self, dispatch: Dispatch, ids: list[int]) -> None:
        """The first sending of a dispatch of one token: as `send_all`, in a fraction of the time."""
        table = self.table
        owners = table.owners or _choose(ids, table.holders)
        groups: dict[int, list[int]] = {}
        for choice, expert in enumerate(ids):
            groups.setdefault(owners[expert], []).append(choice)
        scales = dispatch.weights[0].tolist()
        stretches = [dispatch.next_stretch(targets) for targets in groups.values()]
        for (holder, targets), stretch in zip(groups.items(), stretches, strict=True):
            message = None if holder == NOBODY else self._outgoing(table.peers[holder])
            if message is None:
                self.place(dispatch, np.array(targets), frozenset())
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

    def send_all(self, dispatch: Dispatch, ids: Ids) -> None:
        """The first sending: a share and a stretch for each holder, and one for what nobody holds."""
        table = self.table
        shares, left = self._split(ids, frozenset())
        stretches = [dispatch.next_stretch(share.targets) for share in shares]
        dispatch.next_stretch(left)
        for share, stretch in zip(shares, stretches, strict=True):
            self._send(dispatch, table.peers[share.holder], share, stretch, frozenset())
        if len(left):
            self.place(dispatch, left, frozenset())

    def place(self, dispatch: Dispatch, targets: Ids, tried: frozenset[str]) -> None:
        """Send targets of a dispatch to holders that have not tried yet; park those that have no holder."""
        dispatch.keep_book()
        table = self.table
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
            dispatch.parked_until = time.monotonic() + self._park_seconds
            logger.warning("layer %d waits for a holder of its experts", dispatch.layer)
        dispatch.parked = np.concatenate((dispatch.parked, left))

    def _split(self, ids: Ids, tried: frozenset[str]) -> tuple[list[Share], Ids]:
        """Shares of ids [T, K], and the targets whose experts have no holder but those that have tried."""
        table = self.table
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
            self.place(dispatch, share.targets, tried)
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
            self.lose(peer, error)
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
        self._on_send(request)
        try:
            peer.link.send(message)
        except LinkError as error:
            self.lose(peer, error)
            return
        if peer.link.has_unsent:
            self._poller.watch_sending(peer)

    def send_again(self, request: Request) -> None:
        """Send elsewhere what a request will not bring, unless it has come or a sound peer owes it too."""
        dispatch = request.dispatch
        if dispatch is None or not dispatch.num_owed:
            return
        left = self.table.uncovered(dispatch, request)
        if len(left):
            self.place(dispatch, left, request.tried)

    def lose(self, peer: Peer, error: LinkError | DeadlineError) -> None:
        """Drop a peer; what it owes goes elsewhere."""
        if not peer.is_gone:
            logger.warning("%s is dropped: %s", peer.name, error)
            peer.is_gone = True
            self._peers.lose(peer)
            self.adopt()

    def next_sequence(self) -> int:
        """The number of the next message with rows."""
        return self._next_sequence

    def skip_to_sequence(self, sequence: int) -> None:
        """Give the next message this number: the kernels have used all smaller ones."""
        self._next_sequence = sequence


def _choose(ids: list[int], holders: Sequence[Sequence[int]]) -> dict[int, int]:
    """The holder of each of a token's experts."""
    counts: dict[int, int] = {}
    for expert in ids:
        counts[expert] = counts.get(expert, 0) + 1
    return {portion.expert: portion.holder for portion in portion_out(list(counts.items()), holders)}
