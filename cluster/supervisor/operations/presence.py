"""Which expert actors are there, looked at again and again: the eyes of `cluster.supervisor.operations.absences`."""

from __future__ import annotations

import asyncio

from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.membership.registry import Roster
from cluster.supervisor.operations.absences import Absences
from cluster.supervisor.placement.reconciler import Slots


class Presence:
    """Which expert actors are there, looked at again and again."""

    def __init__(self, after_seconds: float, roster: Roster, slots: Slots) -> None:
        self._roster, self._slots = roster, slots
        self.absences = Absences(after_seconds=after_seconds)

    def look(self) -> None:
        """Take in how it is now."""
        keys = self._roster.keys("expert")
        alive = {key.index for key in keys if self._is_alive(key)}
        up = {key.index for key in keys if key.index in alive and self._roster.state.places[key].is_up}
        now = asyncio.get_running_loop().time()
        everybody = {key.index for key in keys}
        self.absences = self.absences.watch(everybody, alive, up, self._slots.replaced, now)

    def is_away(self, index: int) -> bool:
        """Whether it is not worth while to wait for this actor any longer."""
        return self.absences.is_away(index, asyncio.get_running_loop().time())

    def decide(self) -> frozenset[int] | None:
        """See Absences.decide."""
        return self.absences.decide(self._slots.replaced, asyncio.get_running_loop().time())

    def _is_alive(self, key: ActorKey) -> bool:
        place = self._roster.state.places.get(key)
        is_there = place is not None and place.phase in ("loading", "loaded", "joined")
        return is_there and not self._roster.seats[key].is_silent
