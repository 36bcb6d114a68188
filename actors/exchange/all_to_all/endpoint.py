"""The two ends of the collective transport. Each membership has a group of its own.

    dense actor     DenseAllToAll    makes an AllToAllExchange for each membership
    expert actor    ExpertAllToAll   makes an AllToAllServer for each membership

All actors join a membership at about the same time. They meet in the store of the first dense actor, under
keys that contain the epoch, so actors of different epochs never meet.
"""

from __future__ import annotations

import threading

from torch._C._distributed_c10d import Store

from actors.exchange.all_to_all.exchange import AllToAllExchange
from actors.exchange.all_to_all.group import BACKENDS, Group, GroupContext, open_group
from actors.exchange.all_to_all.server import AllToAllServer
from actors.exchange.all_to_all.wire_format import WireFormat
from actors.exchange.context import DenseContext, ExchangeContext, ExpertContext, choose_backend
from actors.exchange.deadline import Deadline
from actors.exchange.rendezvous import Rendezvous, connect_store, unless_stopped
from actors.protocol.messages import Membership


class DenseAllToAll:
    """A dense actor's end. If the group of a membership cannot come up, the previous exchange stays in
    use."""

    def __init__(self, context: DenseContext) -> None:
        self._context = context
        self._exchange: AllToAllExchange | None = None
        """The exchange of the newest membership whose group came up."""

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when all actors of the membership have met.

        Raises ExchangeError when a peer does not come in time or `stop` is set meanwhile. Raises ValueError
        if settings do not go together, an expert has no holder, or the membership lacks this actor.
        """
        exchange_context, store = self._context.exchange_context, self._context.store
        deadline = Deadline(seconds=exchange_context.settings.connect_deadline_seconds)
        rank = [dense.index for dense in membership.dense].index(self._context.index)
        if rank > 0:
            store = _first_store(membership, deadline, stop)
        rendezvous = Rendezvous(store=store, epoch=membership.epoch, deadline=deadline, stop=stop)
        self._exchange = AllToAllExchange(
            _open_group(exchange_context, membership, rank, rendezvous),
            [expert.experts for expert in membership.experts],
            _wire_format(exchange_context),
            self._context.load,
            membership.epoch,
            exchange_context.settings.deadline_seconds,
        )
        self._context.use_exchange(self._exchange)

    def lost(self) -> tuple[str, ...]:
        """Always empty: the loss of a peer ends the whole exchange, and the peer is not known."""
        return ()

    def suspected(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """End the group. The exchange itself is closed by its user."""
        if self._exchange is not None:
            self._exchange.interrupt()


class ExpertAllToAll:
    """An expert actor's end. It leaves a membership's group before it meets the actors of the next."""

    def __init__(self, context: ExpertContext) -> None:
        self._context = context
        self._server: AllToAllServer | None = None

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when all actors of the membership have met. Raises as `DenseAllToAll.join` does."""
        self.close()
        exchange_context = self._context.exchange_context
        deadline = Deadline(seconds=exchange_context.settings.connect_deadline_seconds)
        store = _first_store(membership, deadline, stop)
        num_dense = len(membership.dense)
        rank = num_dense + [expert.index for expert in membership.experts].index(self._context.index)
        rendezvous = Rendezvous(store=store, epoch=membership.epoch, deadline=deadline, stop=stop)
        group = _open_group(exchange_context, membership, rank, rendezvous)
        serve = self._context.experts.serve
        self._server = AllToAllServer(
            group, num_dense, _wire_format(exchange_context), serve, membership.epoch
        )

    def lost(self, membership: Membership) -> tuple[str, ...]:
        server = self._server
        is_up = server is not None and server.is_up
        return () if is_up else tuple(f"dense-{dense.index}" for dense in membership.dense)

    def close(self) -> None:
        """Leave the group and wait for the computation under way. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


def _first_store(membership: Membership, deadline: Deadline, stop: threading.Event) -> Store:
    first = membership.dense[0]
    peer = f"dense-{first.index}"
    return unless_stopped(
        lambda: connect_store(first.store_host, first.store_port, peer, deadline, stop), stop, peer
    )


def _open_group(
    exchange_context: ExchangeContext, membership: Membership, rank: int, rendezvous: Rendezvous
) -> Group:
    names = [f"dense-{dense.index}" for dense in membership.dense]
    names += [f"expert-{expert.index}" for expert in membership.experts]
    group_context = GroupContext(
        backend=choose_backend(exchange_context.settings, exchange_context.device, BACKENDS),
        node_ip=exchange_context.node_ip,
        device=exchange_context.device,
        deadline_seconds=exchange_context.settings.deadline_seconds,
        rendezvous=rendezvous,
    )
    return open_group(group_context, names, rank)


def _wire_format(exchange_context: ExchangeContext) -> WireFormat:
    return WireFormat(
        hidden_size=exchange_context.hidden_size,
        num_choices=exchange_context.num_choices,
        dtype=exchange_context.dtype,
        device=exchange_context.device,
    )
