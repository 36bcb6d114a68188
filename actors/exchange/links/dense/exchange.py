"""The transport "links", seen from a dense actor: rows go to holders of their experts, and results come back.

Legend: T tokens, H hidden, K experts per token, n results of one message.

    rows [T, H]  --by holder-->  message to a holder: rows [t, H] with routing [t, K]
    arrived [T * K, H], a stretch for each message  <--  message from a holder: results [n, H]
    combined [T, H]  <--gathered by (t, k) and added--  arrived

    an answer comes            its results go to their dispatch (receiver.py)
    an answer is late          its rows go to another holder as well; the first answer counts (hedging.py)
    a link ends                its peer is dropped; the rows it owes go to other holders (sender.py)
    an expert has no holder    its rows are parked until an actor that holds it is linked (sender.py)

Each request has a number of its own and its answer carries that number, so a late answer is recognised. The
results of a dispatch are the same bits, whichever of these events happen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Handle
from actors.exchange.links.dense.hedging import Hedging, WaitLimits
from actors.exchange.links.dense.in_flight import Dispatch
from actors.exchange.links.dense.kernel_exchange import LinkKernels
from actors.exchange.links.dense.peers import Peers
from actors.exchange.links.dense.poller import LinkPoller
from actors.exchange.links.dense.receiver import Receiver
from actors.exchange.links.dense.sender import Sender

MAX_UNDER_WAY = 4
"""How many dispatches may wait for their combine. Each of them keeps its rows and results in memory."""


class LinksExchange:
    """Exchange over the links that `peers` has at any time; links come and go while the exchange lives.

    One thread calls dispatch, combine, maintain, close and `kernels`; any thread may call the rest.
    """

    def __init__(
        self, num_experts: int, limits: WaitLimits, load: ExpertLoad, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called, from any thread, when links or the experts that peers hold have changed."""
        self._on_change = on_change
        self._load = load
        self._poller = LinkPoller()
        self.peers = Peers(num_experts, self._note_change)
        hedging = Hedging(self.peers, limits)
        self._sender = Sender(self.peers, self._poller, num_experts, limits.park, hedging.expect)
        self._receiver = Receiver(self.peers, self._sender, self._poller, hedging, limits.park)
        self.kernels = LinkKernels(self._sender, self._receiver, self._poller, hedging, load, self.dispatch)

    @property
    def is_ready(self) -> bool:
        """Whether every expert has a holder, as far as is known."""
        return self.peers.table.is_complete

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self._receiver.refresh()
        if len(self._receiver.under_way) == MAX_UNDER_WAY:
            raise ValueError(f"a dispatch while {MAX_UNDER_WAY} others are under way")
        # On CUDA this is the layer's one sync: the host must know how many rows go where.
        expert_ids, weights = expert_ids.cpu(), weights.cpu()
        dispatch = Dispatch.of(layer, rows, expert_ids, weights)
        ids = expert_ids.numpy()
        self._load.count(layer, ids)
        self._receiver.under_way.append(dispatch)
        try:
            if len(ids) == 1:
                self._sender.send_one(dispatch, expert_ids[0].tolist())
            elif len(ids):
                self._sender.send_all(dispatch, ids)
        except BaseException:
            self._receiver.abandon(dispatch)
            raise
        return dispatch

    def combine(self, handle: Handle) -> torch.Tensor:
        assert isinstance(handle, Dispatch)
        try:
            while handle.num_owed:
                self._receiver.wait(handle)
        except BaseException:
            self._receiver.abandon(handle)
            raise
        if handle.owed is None:
            self._receiver.under_way.remove(handle)
        else:
            self._receiver.abandon(handle)  # One peer may still compute rows that another peer has answered.
        return handle.result()

    def maintain(self) -> None:
        """Notice ended links and drop silent peers while no step is under way. Never waits."""
        self._receiver.refresh()
        self._receiver.handle_events(0.0)

    def interrupt(self) -> None:
        """End all links; every call, also one under way, raises LinkError. For any thread; idempotent."""
        self.peers.close()

    def close(self) -> None:
        self.interrupt()
        self._sender.adopt()
        self._poller.close()

    def _note_change(self) -> None:
        self._poller.wake()
        self._on_change()
