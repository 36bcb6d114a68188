"""Makes a link of a granted connection, at either end, over the backend that carries rows.

tcp     the connection is the link
nccl    the connection carries the parts that hosts read, two communicators the parts that devices read
gloo    a group of two carries everything; the connection is closed
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

from actors.errors import LinkError
from actors.exchange.context import ExchangeContext, choose_backend
from actors.exchange.deadline import Deadline
from actors.exchange.links.backends.gloo_link import GlooLink
from actors.exchange.links.backends.nccl_link import NcclLink
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.link import Link
from actors.exchange.message import MessageFormat
from actors.exchange.process_groups import gloo, nccl
from actors.exchange.rendezvous import Rendezvous

BACKENDS = ("tcp", "gloo", "nccl")
"""The backends that can carry a link, the best first. TCP takes less processor time than gloo for small
batches, and notices a dead peer sooner."""

DENSE_RANK = 0
EXPERT_RANK = 1

_GROUP_SECONDS = 10.0
"""How long a peer that dies during set-up can block the other end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkContext:
    """The settings that all links of one actor share."""

    backend: str
    """"gloo", "tcp" or "nccl"."""
    node_ip: str
    """The address at which this actor is reached."""
    message_format: MessageFormat
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkNames:
    """The names of one link."""

    peer: str
    """The actor at the other end."""
    key: str
    """The key under which the link's groups meet, unique to two actors and the expert actor's incarnation."""
    rank: int
    """DENSE_RANK or EXPERT_RANK."""


def link_context(context: ExchangeContext) -> LinkContext:
    """The settings of an actor's links. Raises ValueError for settings that do not go together."""
    return LinkContext(
        backend=choose_backend(context.settings, context.device, BACKENDS),
        node_ip=context.node_ip,
        message_format=MessageFormat(
            hidden_size=context.hidden_size,
            num_choices=context.num_choices,
            dtype=context.dtype,
            device=context.device,
            max_rows=context.settings.max_rows,
        ),
        deadline_seconds=context.settings.deadline_seconds,
    )


def link_key(dense_index: int, expert_index: int, incarnation: str) -> str:
    """The key of a link. `incarnation` is the expert actor's."""
    return f"dense-{dense_index}/expert-{expert_index}/{incarnation}"


def link_rendezvous(store: Store, epoch: int, deadline_seconds: float) -> Rendezvous:
    """The rendezvous of a link's groups, once both ends have agreed to make the link. Neither end can give
    up."""
    deadline = Deadline(seconds=min(deadline_seconds, _GROUP_SECONDS))
    return Rendezvous(store=store, epoch=epoch, deadline=deadline, stop=threading.Event())


def make_link(
    context: LinkContext, names: LinkNames, connection: socket.socket, rendezvous: Rendezvous
) -> Link:
    """Make this end of a link, while the peer makes the other end. Raises LinkError.

    The link takes over the connection, also if this raises.
    """
    if context.backend == "gloo":
        connection.close()
        return _gloo_link(context, names, rendezvous)
    carrier = TcpLink(
        names.peer, rendezvous.epoch, connection, context.message_format, context.deadline_seconds
    )
    return carrier if context.backend == "tcp" else _nccl_link(context, names, carrier, rendezvous)


def _gloo_link(context: LinkContext, names: LinkNames, rendezvous: Rendezvous) -> Link:
    try:
        group = gloo.open_group(names.key, names.rank, 2, context.node_ip, rendezvous)
    except RuntimeError as error:
        raise LinkError(names.peer, None, f"cannot come up ({error})") from error
    return GlooLink(names.peer, rendezvous.epoch, group, context.message_format)


def _nccl_link(context: LinkContext, names: LinkNames, carrier: TcpLink, rendezvous: Rendezvous) -> Link:
    device = context.message_format.device
    try:
        requests, answers = (
            nccl.open_group(f"{names.key}/{name}", names.rank, 2, device, rendezvous)
            for name in ("requests", "answers")
        )
    except RuntimeError as error:
        carrier.close()
        raise LinkError(carrier.peer, None, f"cannot come up ({error})") from error
    outward, inward = (requests, answers) if names.rank == DENSE_RANK else (answers, requests)
    return NcclLink(carrier, outward, inward, context.message_format, context.deadline_seconds)
