"""Restarts one actor while the service goes on. `Operations` restarts all actors one by one with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.membership.registry import ActorRecord, Registry
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED, OperationError

_LEAVING_SECONDS = 10.0
"""How long sequences on a dense actor may take to finish before its restart. After that they move to other
actors."""
_POLL_SECONDS = 0.2


async def restart_actor(
    registry: Registry, key: ActorKey, is_away: Callable[[int], bool], deadline_seconds: float
) -> None:
    """Replace the process of one actor and wait until the new process has joined.

    `is_away` says whether an expert actor has been away too long to wait for it. Waiting for other actors
    that are missing, and then for this actor, may each take `deadline_seconds`. Raises OperationError.
    """
    record, before = registry.records[key], registry.state.places[key].incarnation
    await _wait_for_others(registry, key, deadline_seconds)
    if key.kind == "dense" and len(registry.keys("dense")) > 1:
        await _empty(registry, record)
    record.is_leaving = False
    try:
        if record.actor is None or record.heartbeat is None or before is None:
            raise OperationError("restart", f"{key} is not there")
        await record.actor.replace(record.heartbeat, CALL_SECONDS)
    except UNANSWERED as error:
        raise OperationError("restart", f"{key} cannot be ended: {error}") from error

    def is_back() -> bool:
        place = registry.state.places[key]
        return place.phase == "joined" and place.incarnation != before

    def is_given_up() -> bool:
        return key.kind == "expert" and is_away(key.index)

    await registry.until(lambda: is_back() or is_given_up(), deadline_seconds)
    if not is_back() and is_given_up():
        raise OperationError("restart", f"{key} stays away")
    if not is_back():
        raise OperationError("restart", f"{key} is not back after {deadline_seconds:g} seconds")


def is_idle(record: ActorRecord) -> bool:
    """Whether a dense actor had neither running nor waiting sequences in its last report."""
    load = record.report.load if record.report is not None else None
    return load is not None and load.running == load.waiting == 0


async def _wait_for_others(registry: Registry, key: ActorKey, deadline_seconds: float) -> None:
    """Wait until all other actors have joined, so that two actors are never missing at once.

    Raises OperationError.
    """

    def is_whole() -> bool:
        state = registry.state
        return not state.is_round_open and all(
            place.phase == "joined" for other, place in state.places.items() if other != key
        )

    if not await registry.until(is_whole, deadline_seconds):
        raise OperationError(
            "restart", f"actors other than {key} are missing for {deadline_seconds:g} seconds"
        )


async def _empty(registry: Registry, record: ActorRecord) -> None:
    """Have ingress replicas send new sequences elsewhere, and give the running sequences time to finish."""
    record.is_leaving = True
    registry.notify()
    loop = asyncio.get_running_loop()
    end = loop.time() + _LEAVING_SECONDS
    while loop.time() < end and not is_idle(record):
        await asyncio.sleep(_POLL_SECONDS)
        try:
            if record.actor is not None:
                record.report = await record.actor.report(CALL_SECONDS)
        except UNANSWERED:
            return
