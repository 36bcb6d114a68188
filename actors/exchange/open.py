"""Brings the exchange of one membership up, on either side, by whatever transport the settings name.

    dense actor     open_dense   -> Exchange
    expert actor    open_expert  -> Server

Both are called at about the same time with the same membership. Every pair meets under keys of the dense actor's store
that hold the epoch and both indices, so an actor that lives in another epoch is never met. The transport "local" has
nobody to meet: `LocalExchange(experts.forward)`.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch._C._distributed_c10d import Store

from actors.errors import ExchangeError
from actors.exchange.all_to_all import AllToAllExchange
from actors.exchange.deadline import Deadline
from actors.exchange.group import Group, GroupSite, open_group
from actors.exchange.interface import Exchange
from actors.exchange.link import Link
from actors.exchange.links import LinksExchange
from actors.exchange.message import MessageFormat
from actors.exchange.open_link import LinkSite, accept_link, connect_link, link_key
from actors.exchange.rendezvous import Rendezvous, connect_store
from actors.exchange.round import RoundFormat
from actors.exchange.serve_all_to_all import AllToAllServer
from actors.exchange.serve_links import LinkServer, Serve
from actors.exchange.tcp import TcpListener
from actors.messages import DenseMember, Membership
from actors.settings import ExchangeSettings

_CPU_BACKENDS = {"links": "tcp", "all_to_all": "gloo"}
"""What "auto" means on a CPU: TCP takes less processor time than gloo for small batches and sees a dead peer sooner."""
_BACKENDS = {"links": ("gloo", "tcp", "nccl"), "all_to_all": ("gloo", "nccl")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One actor's end of whatever exchange it takes part in."""

    settings: ExchangeSettings
    node_ip: str
    """The address that this actor is reached at."""
    hidden_size: int
    num_experts: int
    """Of the model."""
    num_choices: int
    """Experts per token."""
    dtype: torch.dtype
    device: torch.device
    stop: threading.Event
    """Set it to give up while peers are being met."""


class Server(Protocol):
    """An expert actor's side that is up."""

    @property
    def is_up(self) -> bool:
        """Whether all dense actors are being served."""

    @property
    def failure(self) -> ExchangeError | None:
        """What ended the first link that ended before `close`."""

    def close(self) -> None:
        """End it; peers notice at once. Waits for what is being computed. Idempotent."""


def choose_backend(settings: ExchangeSettings, device: torch.device) -> str:
    """What carries rows. Raises ValueError for a transport or backend that does not exist or suit the device."""
    backends = _BACKENDS.get(settings.transport)
    if backends is None:
        raise ValueError(
            f"exchange transport is {settings.transport!r}, expected one of {', '.join(_BACKENDS)}"
        )
    is_cuda = device.type == "cuda"
    if settings.backend == "auto":
        return "nccl" if is_cuda else _CPU_BACKENDS[settings.transport]
    if settings.backend not in backends or (settings.backend == "nccl") != is_cuda:
        fitting = [name for name in backends if (name == "nccl") == is_cuda]
        raise ValueError(
            f"exchange backend is {settings.backend!r}, expected auto or {' or '.join(fitting)} "
            f"for {settings.transport} on {device.type}"
        )
    return settings.backend


def open_dense(site: Site, member: DenseMember, membership: Membership, store: Store) -> Exchange:
    """Meet all expert actors. `member` is this actor, `store` what it hosts (`rendezvous.host_store`).

    Raises ExchangeError when a peer does not come in time or `stop` is set meanwhile; ValueError for settings that do
    not go together and for an expert that nobody holds.
    """
    rendezvous = _rendezvous(site, store, membership)
    deadline_seconds = site.settings.deadline_seconds
    experts_of_actor = [expert.experts for expert in membership.experts]
    if site.settings.transport == "all_to_all":
        rank = membership.dense.index(member)
        if rank > 0:
            first = _store_of(site, membership.dense[0], rendezvous.deadline)
            rendezvous = _rendezvous(site, first, membership)
        return AllToAllExchange(
            _open_group(site, membership, rank, rendezvous),
            experts_of_actor,
            _round_format(site),
            site.num_experts,
            membership.epoch,
            deadline_seconds,
        )
    link_site = _link_site(site, rendezvous)
    links: list[Link] = []
    with ExitStack() as on_error, TcpListener(site.node_ip, rendezvous) as listener:
        for expert in membership.experts:
            key, peer = link_key(member.index, expert.index), f"expert-{expert.index}"
            links.append(accept_link(link_site, key, peer, listener))
            on_error.callback(links[-1].close)
        exchange = LinksExchange(
            links, experts_of_actor, site.num_experts, membership.epoch, deadline_seconds
        )
        on_error.pop_all()
    return exchange


def open_expert(site: Site, index: int, membership: Membership, serve: Serve) -> Server:
    """Meet all dense actors, then serve them in threads of its own. Raises as `open_dense` does."""
    deadline = Deadline(seconds=site.settings.connect_deadline_seconds)
    if site.settings.transport == "all_to_all":
        store = _store_of(site, membership.dense[0], deadline)
        num_dense = len(membership.dense)
        rank = num_dense + [expert.index for expert in membership.experts].index(index)
        group = _open_group(site, membership, rank, _rendezvous(site, store, membership))
        return AllToAllServer(group, num_dense, _round_format(site), serve, membership.epoch)
    links: list[Link] = []
    with ExitStack() as on_error:
        for dense in membership.dense:
            rendezvous = _rendezvous(site, _store_of(site, dense, deadline), membership)
            key, peer = link_key(dense.index, index), f"dense-{dense.index}"
            links.append(connect_link(_link_site(site, rendezvous), key, peer))
            on_error.callback(links[-1].close)
        on_error.pop_all()
    return LinkServer(links, serve, membership.epoch)


def _store_of(site: Site, dense: DenseMember, deadline: Deadline) -> Store:
    return connect_store(dense.store_host, dense.store_port, f"dense-{dense.index}", deadline, site.stop)


def _rendezvous(site: Site, store: Store, membership: Membership) -> Rendezvous:
    return Rendezvous(
        store=store,
        epoch=membership.epoch,
        deadline=Deadline(seconds=site.settings.connect_deadline_seconds),
        stop=site.stop,
    )


def _open_group(site: Site, membership: Membership, rank: int, rendezvous: Rendezvous) -> Group:
    names = [f"dense-{dense.index}" for dense in membership.dense]
    names += [f"expert-{expert.index}" for expert in membership.experts]
    group_site = GroupSite(
        backend=choose_backend(site.settings, site.device),
        node_ip=site.node_ip,
        device=site.device,
        deadline_seconds=site.settings.deadline_seconds,
        rendezvous=rendezvous,
    )
    return open_group(group_site, names, rank)


def _round_format(site: Site) -> RoundFormat:
    return RoundFormat(
        hidden_size=site.hidden_size,
        num_choices=site.num_choices,
        dtype=site.dtype,
        device=site.device,
    )


def _link_site(site: Site, rendezvous: Rendezvous) -> LinkSite:
    return LinkSite(
        backend=choose_backend(site.settings, site.device),
        node_ip=site.node_ip,
        message_format=MessageFormat(
            hidden_size=site.hidden_size,
            num_choices=site.num_choices,
            dtype=site.dtype,
            device=site.device,
            max_rows=site.settings.max_rows,
        ),
        deadline_seconds=site.settings.deadline_seconds,
        rendezvous=rendezvous,
    )
