"""Gives the experts of an absent actor to other actors, and later places experts on it again.

    away --stand_in--> the others load its experts, then the table names them as holders: parked steps go on
    back --place-----> experts are placed again on all actors, as by `rebalance`

`absences` decides when. If the others have too little memory for as many replicas as before, they hold fewer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cluster.config.cluster_config import ClusterConfig
from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.membership.registry import Registry
from cluster.supervisor.operations.absences import Absences
from cluster.supervisor.operations.operations import Operations
from cluster.supervisor.placement.placement import num_moves, stand_in
from cluster.supervisor.placement.reconciler import PlacementReconciler
from cluster.supervisor.remote_actor import CannotLoadError, OperationError

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.2


class Replacement:
    """Replaces expert actors that stay away. `run` runs for as long as the supervisor lives."""

    def __init__(
        self,
        config: ClusterConfig,
        registry: Registry,
        reconciler: PlacementReconciler,
        operations: Operations,
        loads: Callable[[], list[list[float]] | None],
    ) -> None:
        self._num_replicas = config.expert_replicas
        self._registry, self._reconciler, self._operations, self._loads = (
            registry,
            reconciler,
            operations,
            loads,
        )
        self._absences = Absences(after_seconds=config.replace_after_seconds)

    def is_away(self, index: int) -> bool:
        """Return whether this actor has been away too long for anything to wait for it."""
        return self._absences.is_away(index, _now())

    async def run(self) -> None:
        """Check the actors at short intervals, decide and act. Ends only when it is cancelled."""
        work: asyncio.Task[None] | None = None
        try:
            while True:
                await self._registry.change(_CHECK_SECONDS)
                self._absences = self._watch()
                is_busy = work is not None and not work.done()
                if is_busy or not self._may_begin():
                    continue
                away = self._absences.decide(self._reconciler.replaced, _now())
                if away is not None:
                    work = asyncio.create_task(self._change(away))
        finally:
            if work is not None:
                work.cancel()

    def _watch(self) -> Absences:
        """Return the absences after a check of all expert actors."""
        keys = self._registry.keys("expert")
        alive = {key.index for key in keys if self._is_alive(key)}
        up = {key.index for key in keys if key.index in alive and self._registry.state.places[key].is_up}
        return self._absences.watch({key.index for key in keys}, alive, up, self._reconciler.replaced, _now())

    def _is_alive(self, key: ActorKey) -> bool:
        place = self._registry.state.places.get(key)
        is_there = place is not None and place.phase in ("loading", "loaded", "joined")
        return is_there and not self._registry.records[key].is_silent

    def _may_begin(self) -> bool:
        """Whether a replacement may begin: never before the service has served for the first time.

        Until then the service starts with the actors that its config asks for, or reports why it cannot.
        """
        has_served = self._reconciler.placement is not None and self._registry.state.epoch > 0
        return has_served and self._operations.current is None

    async def _change(self, away: frozenset[int]) -> None:
        before = self._reconciler.replaced
        try:
            async with self._operations.alone("replace"):
                if away < before:
                    num_actors = len(self._registry.keys("expert"))
                    await self._operations.move(await self._operations.choose(num_actors, absent=away))
                else:
                    await self._take_over(away, away - before)
        except (OperationError, ValueError) as error:
            logger.warning("cannot place the experts, leaving out %s: %s", _names(away), error)
            self._absences = self._absences.failed(before - away, _now())
        except Exception:
            logger.exception("placing the experts, leaving out %s, failed", _names(away))
            self._absences = self._absences.failed(before - away, _now())
        else:
            self._absences = self._absences.switched(before, self._reconciler.replaced, _now())

    async def _take_over(self, away: frozenset[int], new: frozenset[int]) -> None:
        """Have the other actors hold the experts of those in `away`; `new` are those not replaced before.

        Do nothing if the others already hold every expert as often as they can. Raises OperationError.
        """
        present = self._reconciler.placement
        assert present is not None
        nodes = {
            key.index: record.heartbeat.node_ip if record.heartbeat is not None else ""
            for key, record in self._registry.records.items()
            if key.kind == "expert" and key.index not in away
        }
        failure: CannotLoadError | None = None
        for num_replicas in range(max(1, min(self._num_replicas, len(nodes))), 0, -1):
            target = await asyncio.to_thread(stand_in, nodes, self._loads(), present, num_replicas)
            if not num_moves(present.slots, target.slots):
                break
            logger.warning("%s stays away: other actors take over its experts", _names(new))
            try:
                await self._operations.move(target, lambda: self._returned(new))
            except CannotLoadError as error:
                failure = error
            else:
                return
        if failure is not None:
            raise failure

    def _returned(self, new: frozenset[int]) -> str | None:
        is_back = all(self._registry.state.places[ActorKey("expert", index)].is_up for index in new)
        return f"{_names(new)} is back" if is_back else None


def _names(indices: frozenset[int]) -> str:
    return ", ".join(f"expert-{index}" for index in sorted(indices)) or "no actor"


def _now() -> float:
    return asyncio.get_running_loop().time()
