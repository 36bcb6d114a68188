"""Brings one link up, on either side, over whichever backend carries it."""

from __future__ import annotations

from dataclasses import dataclass

from actors.errors import LinkError
from actors.exchange import gloo, nccl
from actors.exchange.link import Link
from actors.exchange.message import Message, MessageFormat
from actors.exchange.rendezvous import Rendezvous
from actors.exchange.tcp import TcpLink, TcpListener, connect

DENSE_RANK = 0
EXPERT_RANK = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSite:
    """What all links of one actor in one membership have in common."""

    backend: str
    """"gloo", "tcp" or "nccl"."""
    node_ip: str
    """The address that this actor is reached at."""
    message_format: MessageFormat
    deadline_seconds: float
    rendezvous: Rendezvous


def link_key(dense_index: int, expert_index: int) -> str:
    return f"dense-{dense_index}/expert-{expert_index}"


def accept_link(site: LinkSite, key: str, peer: str, listener: TcpListener) -> Link:
    """The dense actor's end. Raises DeadlineError, or LinkError when it cannot come up."""
    if site.backend == "gloo":
        return _gloo_link(site, key, peer, DENSE_RANK)
    carrier = TcpLink(peer, listener.accept(key, peer), site.message_format, site.deadline_seconds)
    return carrier if site.backend == "tcp" else _nccl_link(site, key, carrier, DENSE_RANK)


def connect_link(site: LinkSite, key: str, peer: str) -> Link:
    """The expert actor's end. Raises as `accept_link` does."""
    if site.backend == "gloo":
        return _gloo_link(site, key, peer, EXPERT_RANK)
    connection = connect(key, peer, site.rendezvous)
    carrier = TcpLink(peer, connection, site.message_format, site.deadline_seconds)
    return carrier if site.backend == "tcp" else _nccl_link(site, key, carrier, EXPERT_RANK)


def _gloo_link(site: LinkSite, key: str, peer: str, rank: int) -> Link:
    site.rendezvous.meet(key, rank, peers={1 - rank: peer})
    try:
        group = gloo.open_group(key, rank, 2, site.node_ip, site.rendezvous)
    except RuntimeError as error:
        raise LinkError(peer, None, f"cannot come up ({error})") from error
    return gloo.GlooLink(peer, group, site.message_format, site.deadline_seconds)


def _nccl_link(site: LinkSite, key: str, carrier: TcpLink, rank: int) -> Link:
    device = site.message_format.device
    try:
        requests, answers = (
            nccl.open_group(f"{key}/{name}", rank, 2, device, site.rendezvous)
            for name in ("requests", "answers")
        )
    except RuntimeError as error:
        carrier.close()
        raise LinkError(carrier.peer, None, f"cannot come up ({error})") from error
    outward, inward = (requests, answers) if rank == DENSE_RANK else (answers, requests)
    messages = (Message(site.message_format), Message(site.message_format))
    return nccl.NcclLink(carrier, outward, inward, messages, site.deadline_seconds)
