"""Sends a dense actor's rows to holders of their experts, the first time and every further time.

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
    """Sends rows to holders of their experts and records the answers that each peer owes. One thread uses it.

    No method waits. The end of a peer is no error: the rows it owes go to other holders or are parked.
    """

    def __init__(
        self,
        peers: Peers,
        poller: LinkPoller,
        num_experts: int,
        park_seconds: float,
        on_send: Callable[[Request], None],
    ) -> None:
        """`on_send` is called for each request that is sent."""
        self.table = peers.table
        """The routing table by which rows are sent; `adopt` replaces it by the newest."""
        self._peers = peers
        self._poller = poller
        self._num_experts = num_experts
        self._park_seconds = park_seconds
        self._on_send = on_send
        self._next_sequence = 0
        """The number of the next message with rows."""

    def adopt(self) -> None:
        """Use the newest routing table. The rows that retired peers owe go to other holders.

        After the exchange is closed nothing is sent.
        """
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
        """`send_all` for a dispatch of one token, in a fraction of the time."""
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
        """Send a dispatch for the first time: one request and one stretch of `arrived` for each holder.

        Targets whose experts have no holder get a last stretch and are parked.
        """
        table = self.table
        shares, left = self._split(ids, frozenset())
        stretches = [dispatch.next_stretch(share.targets) for share in shares]
        dispatch.next_stretch(left)
        for share, stretch in zip(shares, stretches, strict=True):
            self._send(dispatch, table.peers[share.holder], share, stretch, frozenset())
        if len(left):
            self.place(dispatch, left, frozenset())

    def place(self, dispatch: Dispatch, targets: Ids, tried: frozenset[str]) -> None:
        """Send targets of a dispatch to holders that are not in `tried`; park targets without such a holder.

        If all holders of the remaining targets have tried, the dispatch fails with the last of their
        errors.
        """
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
        """The holders' shares of ids [T, K], and the targets whose experts have no holder outside `tried`."""
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
        """A message to fill; None if the peer is gone, or is found to be gone now."""
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
        """Send to other holders the rows of a request that will not be answered.

        Rows whose results have come, or that a sound peer owes too, are left out.
        """
        dispatch = request.dispatch
        if dispatch is None or not dispatch.num_owed:
            return
        left = self.table.uncovered(dispatch, request)
        if len(left):
            self.place(dispatch, left, request.tried)

    def lose(self, peer: Peer, error: LinkError | DeadlineError) -> None:
        """Drop a peer; the rows it owes go to other holders."""
        if not peer.is_gone:
            logger.warning("%s is dropped: %s", peer.name, error)
            peer.is_gone = True
            self._peers.lose(peer)
            self.adopt()

    def next_sequence(self) -> int:
        """Return the number of the next message with rows."""
        return self._next_sequence

    def skip_to_sequence(self, sequence: int) -> None:
        """Give the next message this number: the kernels have used all smaller ones."""
        self._next_sequence = sequence


def _choose(ids: list[int], holders: Sequence[Sequence[int]]) -> dict[int, int]:
    """The chosen holder of each of a token's experts: expert -> holder."""
    counts: dict[int, int] = {}
    for expert in ids:
        counts[expert] = counts.get(expert, 0) + 1
    return {portion.expert: portion.holder for portion in portion_out(list(counts.items()), holders)}
