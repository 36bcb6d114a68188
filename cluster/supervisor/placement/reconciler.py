"""Brings the experts that actors hold in line with the placement, without a pause for any request.

    a target is set         -> the new holders load its experts in the background (hold)
    all experts are held    -> a round with the new table
    all dense actors switch -> the old holders drop their experts

An actor that dies meanwhile loads the experts of both the present placement and the target when it comes
back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.supervisor.membership.membership import ActorKey, PlacementChanged
from cluster.supervisor.membership.registry import ActorRecord, Registry
from cluster.supervisor.placement.placement import Placement, num_moves
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED, CannotLoadError, OperationError

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.2
_IDLE_SECONDS = 1.0


class PlacementReconciler:
    """The placement in force and the target, if any; has expert actors hold and drop experts accordingly."""

    def __init__(self, registry: Registry, save: Callable[[], Awaitable[None]]) -> None:
        self._registry, self._save = registry, save
        self.placement: Placement | None = None
        self.target: Placement | None = None

    def wanted(self, index: int) -> tuple[int, ...]:
        """Return the experts that an actor should hold now, ascending."""
        both = [placement for placement in (self.placement, self.target) if placement is not None]
        return tuple(sorted({expert for placement in both for expert in placement.slots.get(index, ())}))

    @property
    def replaced(self) -> frozenset[int]:
        """The expert actors in the placement that have no experts, since they stay away."""
        slots = self.placement.slots if self.placement is not None else {}
        return frozenset(index for index, experts in slots.items() if not experts)

    def has_place(self, index: int) -> bool:
        """Return whether an expert actor belongs to the service, even if it has no experts now."""
        both = [placement for placement in (self.placement, self.target) if placement is not None]
        return any(index in placement.slots for placement in both)

    def set_first(self, placement: Placement) -> None:
        """Set the placement with which the service starts."""
        self.placement = placement
        self._registry.post(PlacementChanged(placement.slots))

    def count_moves(self) -> tuple[int, int]:
        """Return how many of the target's moves are done, and how many there are in all."""
        if self.target is None or self.placement is None:
            return 0, 0
        missing = sum(len(self._lacking(key)) for key in self._registry.keys("expert"))
        total = num_moves(self.placement.slots, self.target.slots)
        return max(0, total - missing), total

    async def prepare(
        self, target: Placement, deadline_seconds: float, why_not: Callable[[Placement], str | None]
    ) -> None:
        """Have all actors load the target's experts, and wait until they hold them.

        `why_not` returns a reason to stop, or None. Raises OperationError for such a reason, for an actor
        that cannot load, and after the deadline; the target is then given up.
        """
        self.target = target
        for key in self._registry.keys("expert"):
            self._registry.records[key].asked = None
        try:
            await self._save()
            loop = asyncio.get_running_loop()
            end = loop.time() + deadline_seconds
            while lacking := [key for key in self._registry.keys("expert") if self._lacking(key)]:
                for key in lacking:
                    self._raise_if_failed(key)
                if (reason := why_not(target)) is not None:
                    raise OperationError("placement", reason)
                if loop.time() > end:
                    raise OperationError("placement", f"not loaded after {deadline_seconds:g} seconds")
                await self._registry.change(_CHECK_SECONDS)
        except BaseException:
            self.target = None
            raise

    async def commit(self, deadline_seconds: float) -> None:
        """Put the target in force.

        Raises OperationError if not all dense actors have switched in time. The target is in force even then,
        and the experts that it does not need are dropped once all dense actors have switched.
        """
        assert self.target is not None
        self.placement, self.target = self.target, None
        await self._save()
        self._registry.post(PlacementChanged(self.placement.slots))
        if not await self._registry.until(lambda: self._registry.state.is_switched, deadline_seconds):
            raise OperationError("placement", f"not in use everywhere after {deadline_seconds:g} seconds")

    async def run(self) -> None:
        """Have actors hold and drop experts, for as long as the supervisor lives."""
        while True:
            keys = self._registry.keys("expert")
            aligned = await asyncio.gather(*(self._align(key, self._registry.records[key]) for key in keys))
            await asyncio.sleep(_CHECK_SECONDS)
            if self.target is None and not any(aligned):
                await self._registry.change(_IDLE_SECONDS)

    async def _align(self, key: ActorKey, record: ActorRecord) -> bool:
        """Tell the actor to load or drop experts if it differs from the target; return whether it does."""
        state = self._registry.state.places.get(key)
        if self.placement is None or state is None or not state.is_up or record.actor is None:
            return False
        if not self.wanted(key.index):
            # The actor will get experts again or be removed. It keeps its experts, so that they need not be
            # read again.
            return False
        target, missing, spare = self.target, self._missing(key), self._spare(key)
        if not missing and not spare:
            record.asked = None
            return False
        try:
            if missing and record.asked != (state.incarnation, missing):
                await record.actor.hold(missing, CALL_SECONDS)
            if spare and self.target is None and self._registry.state.is_switched:
                await record.actor.drop(spare, CALL_SECONDS)
            record.report = await record.actor.report(CALL_SECONDS)
            record.heartbeat = await record.actor.heartbeat(CALL_SECONDS)
            if self.target is target:
                # This heartbeat was sent after the request, so its progress is that of the request.
                record.asked = (state.incarnation, missing)
        except UNANSWERED as error:
            logger.warning("%s: %s", key, error)
        self._registry.notify()
        return True

    def _missing(self, key: ActorKey) -> tuple[int, ...]:
        return tuple(sorted(set(self.wanted(key.index)) - self._registry.held(key)))

    def _lacking(self, key: ActorKey) -> tuple[int, ...]:
        """The target's experts that the actor does not hold yet."""
        wanted = self.target.slots.get(key.index, ()) if self.target is not None else ()
        return tuple(sorted(set(wanted) - self._registry.held(key)))

    def _spare(self, key: ActorKey) -> tuple[int, ...]:
        return tuple(sorted(self._registry.held(key) - set(self.wanted(key.index))))

    def _raise_if_failed(self, key: ActorKey) -> None:
        """Raise CannotLoadError if the actor failed to load what it was asked for: it would fail again."""
        record, place = self._registry.records[key], self._registry.state.places[key]
        heartbeat = record.heartbeat
        if place.phase == "failed":
            raise CannotLoadError("placement", f"{key} cannot load: {place.error}")
        # A failure counts only if the actor was asked for just these experts; an older request may have
        # failed, too.
        was_asked = record.asked == (place.incarnation, self._missing(key))
        if (
            was_asked
            and self._missing(key)
            and heartbeat is not None
            and heartbeat.progress.state == "failed"
        ):
            raise CannotLoadError("placement", f"{key} cannot load: {heartbeat.progress.error}")
