"""The star of links, seen from a dense actor: one message to each expert actor that gets rows, one back from each.

Legend: T tokens, H hidden, K experts per token, t tokens of one actor, n results of one actor.

    rows [T, H]  --by owner-->  message to actor a: rows [t, H] with routing [t, K]
    arrived [T * K, H], a stretch for each actor  <--  message from actor a: results [n, H]
    combined [T, H]  <--gathered by (t, k) and added--  arrived

A few dispatches may be under way; actors answer each link in order, and an answer finds its dispatch by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from actors.errors import ExchangeError, ExpertFailedError, LinkError
from actors.exchange.combine import add_arrived
from actors.exchange.deadline import Deadline
from actors.exchange.interface import Handle
from actors.exchange.link import Link
from actors.exchange.message import FAILURE, MAGIC, RESULTS, ROWS, Header, Message
from actors.exchange.split import Ids, Share, owner_table, split_rows

MAX_UNDER_WAY = 4
"""Dispatches that may wait for their combine. Beyond some number both ends of a link would have all buffers full of what
the other has not yet asked for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Dispatch:
    """One dispatch under way."""

    sequence: int
    layer: int
    arrived: torch.Tensor
    """[T * K, H], a stretch for each share"""
    num_choices: int
    targets: tuple[Ids, ...]
    """[n] for each share: where its results belong"""
    awaited: dict[int, torch.Tensor] = field(default_factory=dict)
    """actor -> its stretch [n, H] of `arrived`; an actor leaves when it has answered"""


class LinksExchange:
    """Exchange over links that are up. After an ExchangeError all links are closed and every call raises it again."""

    def __init__(
        self,
        links: Sequence[Link],
        experts_of_actor: Sequence[Sequence[int]],
        num_experts: int,
        epoch: int,
        deadline_seconds: float,
    ) -> None:
        """Links and experts in the same order. Raises ValueError for an expert that nobody holds."""
        self._links = tuple(links)
        self._owners = owner_table(experts_of_actor, num_experts)
        self._epoch = epoch
        self._deadline_seconds = deadline_seconds
        self._next_sequence = 0
        self._under_way: dict[int, _Dispatch] = {}
        self._failure: ExchangeError | None = None

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self._check()
        if len(self._under_way) == MAX_UNDER_WAY:
            raise ValueError(f"a dispatch while {MAX_UNDER_WAY} others are under way")
        num_tokens, num_choices = expert_ids.shape
        # On CUDA this is the layer's one sync: the host must know how many rows go where.
        ids, scales = expert_ids.cpu().numpy(), weights.cpu().numpy()
        shares = split_rows(ids, self._owners, len(self._links))
        dispatch = _Dispatch(
            sequence=self._next_sequence,
            layer=layer,
            arrived=rows.new_empty((num_tokens * num_choices, rows.shape[1])),
            num_choices=num_choices,
            targets=tuple(share.targets for share in shares),
        )
        end = 0
        self._next_sequence += 1
        self._under_way[dispatch.sequence] = dispatch
        try:
            for share in shares:
                self._send(dispatch, share, rows, scales)
                start, end = end, end + len(share.targets)
                dispatch.awaited[share.actor] = dispatch.arrived[start:end]
        except ExchangeError as error:
            raise self._fail(error) from error
        return dispatch

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, _Dispatch)
        self._check()
        deadline = Deadline(seconds=self._deadline_seconds)
        try:
            for actor in tuple(handle.awaited):
                while actor in handle.awaited:
                    self._receive(actor, handle.layer, deadline)
        except ExchangeError as error:
            raise self._fail(error) from error
        del self._under_way[handle.sequence]
        return add_arrived(handle.arrived, handle.targets, handle.num_choices)

    def close(self) -> None:
        if self._failure is None:
            self._failure = LinkError("expert actors", None, "this exchange is closed")
        for link in self._links:
            link.close()

    def _send(
        self,
        dispatch: _Dispatch,
        share: Share,
        rows: torch.Tensor,
        weights: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    ) -> None:
        link = self._links[share.actor]
        header = Header(
            magic=MAGIC,
            kind=ROWS,
            epoch=self._epoch,
            sequence=dispatch.sequence,
            layer=dispatch.layer,
            num_tokens=len(share.tokens),
            num_results=len(share.targets),
            num_bytes=0,
        )
        message = link.outgoing(dispatch.layer)
        payload = message.write_rows(header, share.expert_ids, weights[share.tokens])
        tokens = torch.from_numpy(share.tokens).to(rows.device)
        torch.index_select(rows, 0, tokens, out=payload)
        link.send(message, dispatch.layer)

    def _receive(self, actor: int, layer: int, deadline: Deadline) -> None:
        """Take one message from an actor, for whichever dispatch it is."""
        link = self._links[actor]
        message = link.receive(layer, deadline)
        header = message.header
        dispatch = self._under_way.get(header.sequence)
        if header.epoch != self._epoch or dispatch is None or actor not in dispatch.awaited:
            return  # Stale: an answer to nobody's question. What is awaited still comes.
        if header.kind == FAILURE:
            raise ExpertFailedError(link.peer, dispatch.layer, message.failure())
        self._take(link, message, dispatch, dispatch.awaited.pop(actor))

    def _take(self, link: Link, message: Message, dispatch: _Dispatch, stretch: torch.Tensor) -> None:
        header = message.header
        if (header.kind, header.layer, header.num_results) != (RESULTS, dispatch.layer, len(stretch)):
            raise LinkError(
                link.peer,
                dispatch.layer,
                f"answered {len(stretch)} rows with {header.num_results} of layer {header.layer}",
            )
        stretch.copy_(message.payload())

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: ExchangeError) -> ExchangeError:
        self._failure = error
        self.close()
        return error
