"""Brings the collective transport of one membership up, on either side.

    dense actor     open_dense   -> AllToAllExchange
    expert actor    open_expert  -> AllToAllServer

Both are called at about the same time with the same membership, and meet under keys of the first dense actor's store that
hold the epoch, so an actor that lives in another epoch is never met. Links, which live longer than a membership, come up
by `dense_links.py` and `expert_links.py`.
"""

from __future__ import annotations

import threading

from torch._C._distributed_c10d import Store

from actors.exchange.all_to_all.exchange import AllToAllExchange
from actors.exchange.all_to_all.group import Group, GroupSite, open_group
from actors.exchange.all_to_all.server import AllToAllServer
from actors.exchange.all_to_all.wire_format import RoundFormat
from actors.exchange.context import Site, choose_backend
from actors.exchange.deadline import Deadline
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Serve
from actors.exchange.rendezvous import Rendezvous, connect_store, unless_stopped
from actors.protocol.messages import Membership


def open_dense(
    site: Site, index: int, membership: Membership, store: Store, load: ExpertLoad, stop: threading.Event
) -> AllToAllExchange:
    """Meet everybody. `store` is what this dense actor hosts (`rendezvous.host_store`).

    Raises ExchangeError when a peer does not come in time or `stop` is set meanwhile; ValueError for settings that do
    not go together, for an expert that nobody holds and for a membership that this actor is not in.
    """
    deadline = Deadline(seconds=site.settings.connect_deadline_seconds)
    rank = [dense.index for dense in membership.dense].index(index)
    if rank > 0:
        store = _first_store(membership, deadline, stop)
    rendezvous = Rendezvous(store=store, epoch=membership.epoch, deadline=deadline, stop=stop)
    return AllToAllExchange(
        _open_group(site, membership, rank, rendezvous),
        [expert.experts for expert in membership.experts],
        _round_format(site),
        load,
        membership.epoch,
        site.settings.deadline_seconds,
    )


def open_expert(
    site: Site, index: int, membership: Membership, serve: Serve, stop: threading.Event
) -> AllToAllServer:
    """Meet everybody, then serve in a thread of its own. Raises as `open_dense` does."""
    deadline = Deadline(seconds=site.settings.connect_deadline_seconds)
    store = _first_store(membership, deadline, stop)
    num_dense = len(membership.dense)
    rank = num_dense + [expert.index for expert in membership.experts].index(index)
    rendezvous = Rendezvous(store=store, epoch=membership.epoch, deadline=deadline, stop=stop)
    group = _open_group(site, membership, rank, rendezvous)
    return AllToAllServer(group, num_dense, _round_format(site), serve, membership.epoch)


def _first_store(membership: Membership, deadline: Deadline, stop: threading.Event) -> Store:
    first = membership.dense[0]
    peer = f"dense-{first.index}"
    return unless_stopped(
        lambda: connect_store(first.store_host, first.store_port, peer, deadline, stop), stop, peer
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
