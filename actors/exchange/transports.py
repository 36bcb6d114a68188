"""The transports: the ways in which rows travel between dense and expert actors.

    links         one connection between each dense and each expert actor; survives the end of any of them
    all_to_all    collectives in which all actors of a membership take part
    local         no travel: the dense actor computes all experts itself

A new transport is one more entry of `TRANSPORTS`, and its name among `EXCHANGES` of
`cluster.config.cluster_config`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from actors.exchange.all_to_all.endpoint import DenseAllToAll, ExpertAllToAll
from actors.exchange.context import DenseContext, ExpertContext
from actors.exchange.links.dense.endpoint import DenseLinks
from actors.exchange.links.expert.endpoint import ExpertLinks
from actors.exchange.local import DenseLocal
from actors.protocol.messages import Membership


class DenseEndpoint(Protocol):
    """A dense actor's end of its transport. Memberships come and go while it is open."""

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when the exchange in use reaches all experts of a membership.

        Raises DeadlineError naming the peers that did not come within the connect deadline, and LinkError
        when `stop` is set meanwhile. After an error the previous membership stays in use, if it can; with
        links, peers that came in time are used as well. Raises ValueError for settings that do not go
        together.
        """

    def lost(self) -> tuple[str, ...]:
        """Names of lost expert actors of the newest membership, as far as is known. Any thread may ask."""

    def suspected(self) -> tuple[str, ...]:
        """Names of expert actors whose answer is late. Any thread may ask."""

    def close(self) -> None:
        """Accept no more peers and end all links. The exchange itself is closed by its user."""


class ExpertEndpoint(Protocol):
    """An expert actor's end of its transport. Memberships come and go while it is open."""

    def join(self, membership: Membership, stop: threading.Event) -> None:
        """Return when all dense actors of a membership are served.

        Raises ExchangeError naming the dense actors that were not reached, or when `stop` is set meanwhile.
        With links, the others are served all the same. Raises ValueError for settings that do not go
        together.
        """

    def lost(self, membership: Membership) -> tuple[str, ...]:
        """Names of dense actors of a membership that are not served. Any thread may ask."""

    def close(self) -> None:
        """End all links and wait for the computation under way. Idempotent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transport:
    """Opens the two ends of a transport. Both functions raise ValueError if settings do not go together."""

    open_dense: Callable[[DenseContext], DenseEndpoint]
    open_expert: Callable[[ExpertContext], ExpertEndpoint] | None
    """None if the transport has no expert actors."""


TRANSPORTS: Mapping[str, Transport] = {
    "links": Transport(open_dense=DenseLinks, open_expert=ExpertLinks),
    "all_to_all": Transport(open_dense=DenseAllToAll, open_expert=ExpertAllToAll),
    "local": Transport(open_dense=DenseLocal, open_expert=None),
}


def has_expert_actors(name: str) -> bool:
    """Whether a transport has expert actors; else the dense actor computes all experts. Raises ValueError."""
    return _find(name).open_expert is not None


def open_dense(context: DenseContext) -> DenseEndpoint:
    """Open the dense actor's end of the transport that its settings name. Raises ValueError."""
    return _find(context.exchange_context.settings.transport).open_dense(context)


def open_expert(context: ExpertContext) -> ExpertEndpoint:
    """Open the expert actor's end of the transport that its settings name. Raises ValueError."""
    name = context.exchange_context.settings.transport
    open_endpoint = _find(name).open_expert
    if open_endpoint is None:
        raise ValueError(f"exchange transport is {name!r}, which has no expert actors")
    return open_endpoint(context)


def _find(name: str) -> Transport:
    transport = TRANSPORTS.get(name)
    if transport is None:
        raise ValueError(f"exchange transport is {name!r}, expected one of {', '.join(TRANSPORTS)}")
    return transport
