"""Rounds: all members are told at once who takes part, and ingress replicas where the dense actors listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from actors.errors import StaleEpochError
from actors.protocol import messages
from actors.protocol.messages import DenseMember, ExpertMember
from cluster.messages import DenseDoor, Doors
from cluster.supervisor.membership.membership import ActorKey, EpochSeen, RoundEnded
from cluster.supervisor.membership.registry import Roster
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED
from cluster.timeouts import within

logger = logging.getLogger(__name__)


class Rounds:
    """Holds the rounds that membership decides on. A round that was overtaken is given up by its members."""

    def __init__(self, roster: Roster, connect_deadline_seconds: float) -> None:
        self._roster = roster
        self._deadline_seconds = connect_deadline_seconds + CALL_SECONDS

    async def hold(self, epoch: int, pause_seconds: float) -> None:
        """Call the members of the epoch, and post how it ended."""
        await asyncio.sleep(pause_seconds)
        state = self._roster.state
        if state.epoch != epoch:
            return
        keys = list(state.called)
        dense_keys = [key for key in keys if key.kind == "dense"]
        found = await asyncio.gather(*(self._dense_member(key) for key in dense_keys))
        dense = {key: member for key, member in zip(dense_keys, found, strict=True) if member is not None}
        experts = tuple(
            ExpertMember(
                index=key.index,
                experts=tuple(sorted(state.called_table[key.index])),
                incarnation=state.called[key] or "",
            )
            for key in keys
            if key.kind == "expert"
        )
        members = messages.Membership(epoch=epoch, dense=tuple(dense.values()), experts=experts)
        self._roster.notify()
        callees = [key for key in keys if key.kind == "expert" or key in dense]
        results = await asyncio.gather(*(self._join(key, members) for key in callees), return_exceptions=True)
        joined = {key for key, result in zip(callees, results, strict=True) if result is None}
        for key, result in zip(callees, results, strict=True):
            if result is not None and self._roster.state.epoch == epoch:
                logger.warning("epoch %d: %s did not join: %s", epoch, key, result)
                if isinstance(result, StaleEpochError):
                    self._roster.post(EpochSeen(result.current))
        self._roster.post(RoundEnded(epoch, frozenset(joined)))

    async def _dense_member(self, key: ActorKey) -> DenseMember | None:
        """Where its links meet; None where it does not say."""
        seat, incarnation = self._roster.seats[key], self._roster.state.called[key] or ""
        if seat.listening is None or seat.listening[0] != incarnation:
            try:
                assert seat.actor is not None
                seat.listening = (incarnation, *await seat.actor.listen(CALL_SECONDS))
            except UNANSWERED as error:
                logger.warning("%s does not listen: %s", key, error)
                return None
        _, _, _, store_host, store_port = seat.listening
        return DenseMember(
            index=key.index, store_host=store_host, store_port=store_port, incarnation=incarnation
        )

    async def _join(self, key: ActorKey, members: messages.Membership) -> None:
        seat = self._roster.seats.get(key)
        if seat is not None and seat.actor is not None:
            await seat.actor.join(members, self._deadline_seconds)


class DoorBoard:
    """The dense actors' addresses for ingress replicas, in versions."""

    def __init__(self, roster: Roster, token: str) -> None:
        self._roster = roster
        self._doors = Doors(version=0, token=token, dense=())
        self._changed = asyncio.Event()
        self._drain_seconds: float | None = None

    async def get(self, known_version: int, wait_seconds: float) -> Doors:
        """At once if they are newer than `known_version`, else when they change or after the wait."""
        if self._doors.version <= known_version:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(wait_seconds, self._changed.wait())
        return self._doors

    def drain(self, grace_seconds: float) -> None:
        """From now on every ingress replica refuses new requests."""
        self._drain_seconds = grace_seconds
        self.update()

    async def follow(self) -> None:
        """Tell whenever a dense actor has come or gone; ends only when it is cancelled."""
        while True:
            self.update()
            await self._roster.change(_LOOK_SECONDS)

    def update(self) -> None:
        """Bring the addresses up to date. Before everybody was looked at, they would be too few."""
        state = self._roster.state
        if any(place.phase == "unseen" for place in state.places.values()) and self._drain_seconds is None:
            return
        dense = []
        for key in self._roster.keys("dense"):
            seat, place = self._roster.seats[key], state.places[key]
            if place.is_up and seat.listening is not None and seat.listening[0] == place.incarnation:
                _, host, port, _, _ = seat.listening
                dense.append(DenseDoor(index=key.index, host=host, port=port, is_leaving=seat.is_leaving))
        before = self._doors
        if (tuple(dense), self._drain_seconds) != (before.dense, before.drain_seconds):
            self._doors = Doors(
                version=before.version + 1,
                token=before.token,
                dense=tuple(dense),
                drain_seconds=self._drain_seconds,
            )
            self._changed.set()
            self._changed = asyncio.Event()


_LOOK_SECONDS = 5.0
