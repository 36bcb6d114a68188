"""The exchanges of a decoding step, carried out by the C kernels alone while nothing unusual happens.

    begin       nothing is under way and every expert has a sound holder, so the kernels may start
    (kernels)   layer after layer: send rows, wait for results, add them up (actors/kernels/c/exchange.c)
    end         learn how long answers took
    take_over   the kernels have stopped within a layer: the messages they have sent become an ordinary
                dispatch, and each link continues where the kernels stopped

The kernels decide nothing: `hedging.py` and `receiver.py` handle late, lost and refused answers. While the
kernels exchange rows, the interpreter's lock is free for the other threads of the process.

Legend: B sequences, H hidden, K experts per token, E experts, P peers, L layers.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.errors import LinkError
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Handle, KernelExchange
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.dense.hedging import Hedging
from actors.exchange.links.dense.in_flight import Dispatch, Request
from actors.exchange.links.dense.peers import Peer, RoutingTable
from actors.exchange.links.dense.poller import LinkPoller
from actors.exchange.links.dense.receiver import Receiver
from actors.exchange.links.dense.sender import Sender
from actors.exchange.message import MAGIC, Message
from actors.exchange.row_assignment import MIN_PART_ROWS, NOBODY
from actors.kernels.exchange import ExchangePeer, ExchangeTask

MAX_ROWS = 2 * MIN_PART_ROWS - 1
"""Rows of a step at most. With more rows, an expert's rows may be split over several holders."""
_MAX_PEERS = 64
_NUM_SIZES = 64


class LinkKernels:
    """Lets the kernels use the links of a LinksExchange: an `ExchangeKernels`. One thread uses it."""

    def __init__(
        self,
        sender: Sender,
        receiver: Receiver,
        poller: LinkPoller,
        hedging: Hedging,
        load: ExpertLoad,
        dispatch: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], Handle],
    ) -> None:
        """`dispatch` is that of the LinksExchange, for layers in which the kernels sent nothing."""
        self._sender, self._receiver = sender, receiver
        self._poller, self._hedging = poller, hedging
        self._load, self._dispatch = load, dispatch
        self._prepared: LinkKernelExchange | None = None
        """The exchange for the routing table of the last `begin`; None if there is none."""

    def begin(self, num_layers: int, x: torch.Tensor) -> KernelExchange | None:
        self._receiver.refresh()
        table = self._sender.table
        is_idle = not self._receiver.under_way
        if not (is_idle and len(x) <= MAX_ROWS and x.device.type == "cpu" and table.is_complete):
            return None
        prepared = self._prepared
        if prepared is None or prepared.table is not table or prepared.num_layers != num_layers:
            prepared = self._prepared = self._prepare(num_layers)
        if prepared is None or not prepared.is_usable:
            return None
        prepared.begin(x)
        return prepared

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        # The messages that the kernels have borrowed may still be on their way, so they are not used again.
        begun, self._prepared = self._prepared, None
        dispatch = begun.begun_dispatch(layer, rows, expert_ids, weights) if begun is not None else None
        if begun is None or dispatch is None:
            return self._dispatch(layer, rows, expert_ids, weights)
        self._receiver.under_way.append(dispatch)
        for peer in begun.hand_back():
            self._receiver.take_all(peer)
        return dispatch

    def _prepare(self, num_layers: int) -> LinkKernelExchange | None:
        """An exchange over the present links; None unless all of them are TCP links, at most _MAX_PEERS."""
        peers = self._sender.table.peers
        lines = [
            _Line(peer=peer, link=peer.link, outgoing=peer.link.outgoing())
            for peer in peers
            if isinstance(peer.link, TcpLink)
        ]
        if not lines or len(lines) < len(peers) or len(lines) > _MAX_PEERS:
            return None
        return LinkKernelExchange(self._sender, self._poller, self._hedging, self._load, num_layers, lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A peer, and the message of its link that the kernels fill."""

    peer: Peer
    link: TcpLink
    outgoing: Message


class LinkKernelExchange:
    """The links as the kernels see them (see `KernelExchange`). A new routing table needs a new object."""

    def __init__(
        self,
        sender: Sender,
        poller: LinkPoller,
        hedging: Hedging,
        load: ExpertLoad,
        num_layers: int,
        lines: list[_Line],
    ) -> None:
        self.table: RoutingTable = sender.table
        """The routing table for which this exchange was made."""
        self.num_layers = num_layers
        self._sender, self._poller, self._hedging = sender, poller, hedging
        self._load, self._lines = load, lines
        num_experts, num_peers = len(sender.table.holders), len(lines)
        self._holders = np.full((num_experts, num_peers), NOBODY, dtype=np.int32)
        for expert, able in enumerate(sender.table.holders):
            self._holders[expert, : len(able)] = able
        self._hedge_delay = array("q", bytes(8 * _NUM_SIZES))
        self._answers = array("q", bytes(16 * num_layers * num_peers))
        self._counts = load.table(num_layers)
        self._owners = np.zeros(num_experts, dtype=np.int32)
        self._places: npt.NDArray[np.uintp] = np.zeros(2 * MAX_ROWS, dtype=np.uintp)
        self._peers = (ExchangePeer * num_peers)(
            *(
                ExchangePeer(
                    descriptor=line.link.fileno(),
                    epoch=line.link.epoch,
                    outgoing=line.outgoing.host.data_ptr(),
                    incoming=line.link.incoming.host.data_ptr(),
                )
                for line in lines
            )
        )
        self.task = ExchangeTask(
            peers=ctypes.addressof(self._peers),
            holders=self._holders.ctypes.data,
            hedge_delay_ns=self._hedge_delay.buffer_info()[0],
            answers=self._answers.buffer_info()[0],
            expert_rows=self._counts.ctypes.data,
            places=self._places.ctypes.data,
            owners=self._owners.ctypes.data,
            num_peers=num_peers,
            num_experts=num_experts,
            magic=MAGIC,
            wakeup=poller.wakeup,
        )
        self.combined: torch.Tensor | None = None
        """[B, H]: the result of the last complete layer, written by the kernels."""

    @property
    def is_usable(self) -> bool:
        """Whether every link is sound and idle at this moment, as the kernels expect."""
        return all(
            not (peer.is_gone or peer.is_suspected or peer.owed or peer.link.has_unsent)
            for peer in self.table.peers
        )

    def begin(self, x: torch.Tensor) -> None:
        """Prepare a step whose rows have the shape and dtype of x [B, H]."""
        seconds = self._hedging.delay.seconds
        for size in range(1, (2 * len(x)).bit_length() + 1):
            self._hedge_delay[size] = int(seconds(1 << (size - 1)) * 1e9)
        if self._counts is not (counts := self._load.table(self.num_layers)):
            self._counts = counts
            self.task.expert_rows = counts.ctypes.data
        self.task.num_answers = 0
        if self.combined is None or self.combined.shape != x.shape or self.combined.dtype != x.dtype:
            self.combined = torch.empty_like(x)
        self.task.combined = self.combined.data_ptr()
        self.task.row_bytes = x.shape[1] * x.itemsize
        self.task.next_sequence = self._sender.next_sequence()

    def end(self) -> None:
        self._sender.skip_to_sequence(self.task.next_sequence)
        learn, answers = self._hedging.delay.learn, self._answers
        for place in range(0, 2 * self.task.num_answers, 2):
            learn(answers[place], answers[place + 1] * 1e-9)

    def begun_dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Dispatch | None:
        """The layer that the kernels have begun, as a dispatch with unanswered requests.

        None if they sent nothing. rows [B, H], expert_ids [B, K], weights [B, K] as `Exchange.dispatch` takes
        them.
        """
        if not any(state.num_results for state in self._peers):
            return None
        dispatch = Dispatch.of(layer, rows, expert_ids, weights)
        owner_of_route = self._owners[expert_ids.numpy()].reshape(-1)
        for place, (state, line) in enumerate(zip(self._peers, self._lines, strict=True)):
            if not state.num_results:
                continue
            targets = np.flatnonzero(owner_of_route == place)
            request = Request(
                sequence=state.sequence,
                dispatch=dispatch,
                targets=targets,
                num_results=state.num_results,
                stretch=dispatch.next_stretch(targets),
                sent_at=state.sent_ns * 1e-9,
            )
            line.peer.owed.append(request)
        self._hedging.check_soon()
        return dispatch

    def hand_back(self) -> list[Peer]:
        """Let each link continue where the kernels stopped. Return peers whose links have bytes to read."""
        with_bytes = []
        for state, line in zip(self._peers, self._lines, strict=True):
            if not state.num_results:
                continue
            try:
                line.link.take_up(line.outgoing, state.num_sent, state.num_read)
            except LinkError as error:
                self._sender.lose(line.peer, error)
                continue
            if line.link.has_unsent:
                self._poller.watch_sending(line.peer)
            if state.num_read:
                with_bytes.append(line.peer)
        return with_bytes
