"""Drains the service: ingress replicas refuse new requests, and running requests get time to finish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.supervisor.membership.dense_addresses import AddressBoard
from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.membership.registry import Registry
from cluster.supervisor.operations.rolling_restart import is_idle

_POLL_SECONDS = 0.2
_BEYOND_GRACE_SECONDS = 2.0
"""Time for ingress replicas and dense actors to end the requests that are left after the grace period."""


async def drain(
    registry: Registry,
    addresses: AddressBoard,
    refresh: Callable[[ActorKey], Awaitable[None]],
    grace_seconds: float,
) -> None:
    """Tell the ingress replicas to drain, then return when no request runs or the grace period is over.

    `refresh` asks an actor for a new report.
    """
    addresses.drain(grace_seconds)
    loop = asyncio.get_running_loop()
    end = loop.time() + grace_seconds + _BEYOND_GRACE_SECONDS
    num_idle_checks = 0
    # A request that moves from one dense actor to another is at neither of them for a moment. Two checks in a
    # row must therefore find all of them idle.
    while num_idle_checks < 2 and loop.time() < end:
        await asyncio.sleep(_POLL_SECONDS)
        dense = registry.keys("dense")
        await asyncio.gather(*(refresh(key) for key in dense))
        is_quiet = all(is_idle(registry.records[key]) for key in dense)
        num_idle_checks = num_idle_checks + 1 if is_quiet else 0
