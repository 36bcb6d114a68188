"""Holds rounds: tells all members of an epoch at the same time who the members are."""

from __future__ import annotations

import asyncio
import logging

from actors.errors import StaleEpochError
from actors.protocol import messages
from actors.protocol.messages import DenseMember, ExpertMember
from cluster.supervisor.membership.membership import ActorKey, EpochSeen, RoundEnded
from cluster.supervisor.membership.registry import Registry
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED

logger = logging.getLogger(__name__)


class Rounds:
    """Holds the rounds that `membership` decides on.

    When a newer round begins, members give up the older one.
    """

    def __init__(self, registry: Registry, connect_deadline_seconds: float) -> None:
        self._registry = registry
        self._deadline_seconds = connect_deadline_seconds + CALL_SECONDS

    async def hold(self, epoch: int, pause_seconds: float) -> None:
        """Call the members of the epoch, and post RoundEnded with those that joined."""
        await asyncio.sleep(pause_seconds)
        state = self._registry.state
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
        self._registry.notify()
        callees = [key for key in keys if key.kind == "expert" or key in dense]
        results = await asyncio.gather(*(self._join(key, members) for key in callees), return_exceptions=True)
        joined = {key for key, result in zip(callees, results, strict=True) if result is None}
        for key, result in zip(callees, results, strict=True):
            if result is not None and self._registry.state.epoch == epoch:
                logger.warning("epoch %d: %s did not join: %s", epoch, key, result)
                if isinstance(result, StaleEpochError):
                    self._registry.post(EpochSeen(result.current))
        self._registry.post(RoundEnded(epoch, frozenset(joined)))

    async def _dense_member(self, key: ActorKey) -> DenseMember | None:
        """Return the address at which the dense actor's links are made; None if the actor does not answer."""
        record, incarnation = self._registry.records[key], self._registry.state.called[key] or ""
        if record.listening is None or record.listening[0] != incarnation:
            try:
                assert record.actor is not None
                record.listening = (incarnation, *await record.actor.listen(CALL_SECONDS))
            except UNANSWERED as error:
                logger.warning("%s does not listen: %s", key, error)
                return None
        _, _, _, store_host, store_port = record.listening
        return DenseMember(
            index=key.index, store_host=store_host, store_port=store_port, incarnation=incarnation
        )

    async def _join(self, key: ActorKey, members: messages.Membership) -> None:
        record = self._registry.records.get(key)
        if record is not None and record.actor is not None:
            await record.actor.join(members, self._deadline_seconds)
