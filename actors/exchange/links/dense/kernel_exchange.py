"""A decoding step's exchanges, carried out by the kernels between the layers as long as their course is the plain one.

    begin       nothing is under way, every expert has a holder in good standing: the kernels may go ahead
    (kernels)   layer after layer: send, wait, add up (actors/kernels/c/exchange.c)
    end         what was learnt meanwhile: how long answers took
    take_over   the kernels have stopped within a layer, for whatever reason: what they left becomes a dispatch as any other,
    hand_back   and the links go on where the kernels were

Nothing is decided here that `links.py` decides: whatever is late, lost or refused is handled there. While the kernels exchange,
the interpreter's lock is free for the process's other threads.

Legend: B sequences, H hidden, K experts per token, E experts, P peers, L layers.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from actors.errors import LinkError
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.dense.in_flight import Dispatch, Request
from actors.exchange.links.dense.peers import Peer, Table
from actors.exchange.links.dense.sender import Sender
from actors.exchange.message import MAGIC, Message
from actors.exchange.row_assignment import MIN_PART_ROWS, NOBODY
from actors.kernels.exchange import TurnPeer, TurnTask

MAX_ROWS = 2 * MIN_PART_ROWS - 1
"""Of a step: with more, an expert's rows may be shared out over its holders."""
_MAX_PEERS = 64
_NUM_SIZES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A peer and the memory that its link lends to the kernels."""

    peer: Peer
    link: TcpLink
    outgoing: Message


class DirectTurns:
    """What the kernels know of the links. Made anew when the table of holders has changed; one thread uses it."""

    def __init__(self, sender: Sender, load: ExpertLoad, num_layers: int, lines: list[_Line]) -> None:
        self.table: Table = sender.table
        """The table that it was made for."""
        self.num_layers = num_layers
        self._sender, self._load, self._lines = sender, load, lines
        num_experts, num_peers = len(sender.table.holders), len(lines)
        self._holders = np.full((num_experts, num_peers), NOBODY, dtype=np.int32)
        for expert, able in enumerate(sender.table.holders):
            self._holders[expert, : len(able)] = able
        self._patience = array("q", bytes(8 * _NUM_SIZES))
        self._answers = array("q", bytes(16 * num_layers * num_peers))
        self._counts = load.table(num_layers)
        self._owners = np.zeros(num_experts, dtype=np.int32)
        self._places: npt.NDArray[np.uintp] = np.zeros(2 * MAX_ROWS, dtype=np.uintp)
        self._peers = (TurnPeer * num_peers)(
            *(
                TurnPeer(
                    descriptor=line.link.fileno(),
                    epoch=line.link.epoch,
                    outgoing=line.outgoing.host.data_ptr(),
                    incoming=line.link.incoming.host.data_ptr(),
                )
                for line in lines
            )
        )
        self.task = TurnTask(
            peers=ctypes.addressof(self._peers),
            holders=self._holders.ctypes.data,
            patience_ns=self._patience.buffer_info()[0],
            answers=self._answers.buffer_info()[0],
            expert_rows=self._counts.ctypes.data,
            places=self._places.ctypes.data,
            owners=self._owners.ctypes.data,
            num_peers=num_peers,
            num_experts=num_experts,
            magic=MAGIC,
            bell=sender.board.bell,
        )
        """What the kernels are given."""
        self.combined: torch.Tensor | None = None
        """[B, H]: where the kernels leave the last complete layer's result."""

    @staticmethod
    def make(sender: Sender, load: ExpertLoad, num_layers: int) -> DirectTurns | None:
        """None where not every link is one that the kernels know."""
        peers = sender.table.peers
        lines = [
            _Line(peer=peer, link=peer.link, outgoing=peer.link.outgoing())
            for peer in peers
            if isinstance(peer.link, TcpLink)
        ]
        if not lines or len(lines) < len(peers) or len(lines) > _MAX_PEERS:
            return None
        return DirectTurns(sender, load, num_layers, lines)

    @property
    def is_usable(self) -> bool:
        """Whether everything is as the kernels expect it at this moment."""
        return all(
            not (peer.is_gone or peer.is_suspected or peer.owed or peer.link.has_unsent)
            for peer in self.table.peers
        )

    def begin(self, x: torch.Tensor) -> None:
        """Prepare a step of sequences whose rows are like x [B, H]."""
        seconds = self._sender.patience.seconds
        for size in range(1, (2 * len(x)).bit_length() + 1):
            self._patience[size] = int(seconds(1 << (size - 1)) * 1e9)
        if self._counts is not (counts := self._load.table(self.num_layers)):
            self._counts = counts
            self.task.expert_rows = counts.ctypes.data
        self.task.num_answers = 0
        if self.combined is None or self.combined.shape != x.shape or self.combined.dtype != x.dtype:
            self.combined = torch.empty_like(x)
        self.task.combined = self.combined.data_ptr()
        self.task.row_bytes = x.shape[1] * x.itemsize
        self.task.next_sequence = self._sender.next_sequence

    def end(self) -> None:
        """Take note of what the kernels have done since `begin`."""
        self._sender.next_sequence = self.task.next_sequence
        learn, answers = self._sender.patience.learn, self._answers
        for place in range(0, 2 * self.task.num_answers, 2):
            learn(answers[place], answers[place + 1] * 1e-9)

    def take_over(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Dispatch | None:
        """What the kernels have begun of a layer, as a dispatch whose requests are owed; None where nothing was sent.

        rows [B, H], expert_ids [B, K], weights [B, K] as `Exchange.dispatch` takes them.
        """
        if not any(turn.num_results for turn in self._peers):
            return None
        dispatch = Dispatch.of(layer, rows, expert_ids, weights)
        owner_of_route = self._owners[expert_ids.numpy()].reshape(-1)
        for place, (turn, line) in enumerate(zip(self._peers, self._lines, strict=True)):
            if not turn.num_results:
                continue
            targets = np.flatnonzero(owner_of_route == place)
            request = Request(
                sequence=turn.sequence,
                dispatch=dispatch,
                targets=targets,
                num_results=turn.num_results,
                stretch=dispatch.next_stretch(targets),
                sent_at=turn.sent_ns * 1e-9,
            )
            line.peer.owed.append(request)
        self._sender.check_at = 0.0  # Whatever is late is looked at before anything is waited for.
        return dispatch

    def hand_back(self) -> list[Peer]:
        """Give the links that the kernels have begun to use what they left there. Peers whose links have something to read."""
        with_news = []
        for turn, line in zip(self._peers, self._lines, strict=True):
            if not turn.num_results:
                continue
            try:
                line.link.take_up(line.outgoing, turn.num_sent, turn.num_read)
            except LinkError as error:
                self._sender.lose(line.peer, error)
                continue
            if line.link.has_unsent:
                self._sender.board.watch_sending(line.peer)
            if turn.num_read:
                with_news.append(line.peer)
        return with_news
