"""Carries out an operator's operations on a running service, without losing a request.

An operation that fails leaves the placement as it was. If the supervisor dies during an operation, the next
supervisor continues it from the target placement in the snapshot; without a target the operation has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from actors.checkpoint.config import NUM_EXPERTS
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import OperationView
from cluster.supervisor.membership.dense_addresses import AddressBoard
from cluster.supervisor.membership.membership import ActorKey, Added, Removed
from cluster.supervisor.membership.registry import ActorRecord, Registry, key_of
from cluster.supervisor.operations.drain import drain
from cluster.supervisor.operations.messages import Drain, Operation, Rebalance, Restart, Scale
from cluster.supervisor.operations.rebalance_trigger import Hysteresis
from cluster.supervisor.operations.rolling_restart import restart_actor
from cluster.supervisor.placement.placement import Holder, Placement, among, gain, place, slot_counts
from cluster.supervisor.placement.reconciler import PlacementReconciler
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED, OperationError

logger = logging.getLogger(__name__)

_CREATE_SECONDS = 180.0
_REMOVE_UNPLACED_SECONDS = 5.0
_SWITCH_CALLS = 2
"""Number of rounds that a switch may take: a round that is under way, and the round with the new table."""


class ActorManager(Protocol):
    """The supervisor as its operations see it."""

    async def plan(self, num_experts: int) -> list[DenseSettings | ExpertSettings]:
        """Return the settings of all actors for `num_experts` expert actors."""

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        """Free the place of an actor that was removed."""

    def watch(self, key: ActorKey) -> None:
        """Begin to create and follow the actor of a place."""

    def unwatch(self, key: ActorKey) -> None:
        """Stop following the actor of a place."""

    async def refresh(self, key: ActorKey) -> None:
        """Ask an actor for a new report. If it does not answer within a second, its last report stays."""

    def loads(self) -> list[list[float]] | None:
        """Return recent rows per expert, [layer][expert]; None if too few rows were seen to compare them."""

    def is_away(self, index: int) -> bool:
        """Return whether an expert actor has been away too long for anything to wait for it."""


class Operations:
    """Carries out operations, one at a time, and says which one is under way."""

    def __init__(
        self,
        config: ClusterConfig,
        registry: Registry,
        reconciler: PlacementReconciler,
        addresses: AddressBoard,
        manager: ActorManager,
    ) -> None:
        self._config, self._registry, self._reconciler = config, registry, reconciler
        self._addresses, self._manager = addresses, manager
        self._current: OperationView | None = None

    @property
    def current(self) -> OperationView | None:
        """The operation under way and its progress, or None."""
        if self._current is not None and self._reconciler.target is not None:
            done, total = self._reconciler.count_moves()
            return OperationView(name=self._current.name, step="loading experts", done=done, total=total)
        return self._current

    async def place_first(self) -> None:
        """Choose the first placement.

        With replicas, first wait until the node of each expert actor is known.
        """
        experts = self._registry.keys("expert")
        if not experts:
            return
        if self._config.expert_replicas > 1 or self._config.redundant_slots:
            await self._registry.until(lambda: self._are_seen(experts), _CREATE_SECONDS)
        holders = self._holders([key.index for key in experts])
        self._reconciler.set_first(place(holders, None, None, self._config.expert_replicas))

    async def operate(self, operation: Operation) -> None:
        """Carry out an operation. Raises ValueError, OperationError.

        A drain may run at any time; the other operations only while no other operation is under way.
        """
        match operation:
            case Scale():
                await self._scale(operation.expert_actors)
            case Rebalance():
                await self._rebalance()
            case Restart():
                await self._restart()
            case Drain():
                await drain(self._registry, self._addresses, self._manager.refresh, operation.grace_seconds)

    async def _scale(self, expert_actors: int) -> None:
        self._check_number(expert_actors)
        async with self.alone("scale"):
            present = len(self._registry.keys("expert"))
            if expert_actors > present:
                await self._add_actors(expert_actors)
            await self.move(await self.choose(expert_actors))

    async def _rebalance(self) -> None:
        if not self._registry.keys("expert"):
            raise ValueError("exchange is 'local', which has no expert actors to rebalance")
        async with self.alone("rebalance"):
            await self.move(await self.choose(len(self._registry.keys("expert"))))

    async def _restart(self) -> None:
        async with self.alone("restart"):
            if self._reconciler.replaced:
                names = ", ".join(f"expert-{index}" for index in sorted(self._reconciler.replaced))
                raise OperationError("restart", f"{names} stays away")
            keys = [*self._registry.keys("expert"), *self._registry.keys("dense")]
            for done, key in enumerate(keys):
                self._current = OperationView(
                    name="restart", step=f"restarting {key}", done=done, total=len(keys)
                )
                await restart_actor(
                    self._registry, key, self._manager.is_away, self._config.load_deadline_seconds
                )

    async def resume(self) -> None:
        """Finish the operation that was under way when an earlier supervisor died, if any."""
        target = self._reconciler.target
        if target is None and not self._unplaced():
            return
        try:
            async with self.alone("resume"):
                await self.move(target or self._reconciler.placement)
        except OperationError as error:
            logger.error("%s", error)

    async def remove_unplaced(self) -> None:
        """Remove at intervals the actors in no placement, for which an operation had no time left."""
        while True:
            await asyncio.sleep(_REMOVE_UNPLACED_SECONDS)
            if self._current is None:
                await self._remove_unplaced()

    async def rebalance_when_worth_it(self) -> None:
        """Rebalance without a command when that saves enough, as `Hysteresis` decides.

        Runs until it is cancelled.
        """
        interval = self._config.rebalance_interval_seconds
        if interval == 0 or not self._registry.keys("expert"):
            return
        watch = Hysteresis(threshold=self._config.rebalance_threshold, interval_seconds=interval)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(10.0, interval / 4))
            present, loads = self._reconciler.placement, self._manager.loads()
            if present is None or loads is None or self._current is not None:
                continue
            other = await self.choose(len(present.slots))
            watch, is_time = watch.watch(gain(loads, present, other), loop.time())
            if is_time:
                try:
                    await self._rebalance()
                except (ValueError, OperationError) as error:
                    logger.error("cannot rebalance: %s", error)

    async def choose(self, num_experts: int, absent: frozenset[int] | None = None) -> Placement:
        """Return a placement on `num_experts` actors, leaving out `absent`.

        By default the replaced actors and those that stay away are left out. Raises ValueError if no actor is
        left.
        """
        if absent is None:
            absent = self._reconciler.replaced | {
                index for index in range(num_experts) if self._manager.is_away(index)
            }
        there = [index for index in range(num_experts) if index not in absent]
        holders, loads, present = self._holders(there), self._manager.loads(), self._reconciler.placement
        placed = await asyncio.to_thread(place, holders, loads, present, self._config.expert_replicas)
        return among(placed, present, absent & set(range(num_experts)))

    async def move(self, target: Placement | None, why_not: Callable[[], str | None] = lambda: None) -> None:
        """Load the target's experts, switch to the target, and remove actors that are in no placement.

        Raises OperationError if that fails or if `why_not` returns a reason to stop. Up to the switch a
        failure leaves the placement as it was.
        """
        try:
            if target is not None and target != self._reconciler.placement:
                await self._reconciler.prepare(
                    target,
                    self._config.load_deadline_seconds,
                    lambda placement: self._who_is_away(placement) or why_not(),
                )
                await self._reconciler.commit(
                    _SWITCH_CALLS * (self._config.connect_deadline_seconds + CALL_SECONDS)
                )
        finally:
            await self._remove_unplaced()

    async def _add_actors(self, num_experts: int) -> None:
        """Create expert actors up to `num_experts`, and wait for a sign of life of each new one.

        Raises OperationError if an actor does not start; all new actors are then removed.
        """
        self._say("creating actors")
        try:
            planned = await self._manager.plan(num_experts)
        except Exception as error:
            raise OperationError("scale", str(error)) from error
        new = [settings for settings in planned if key_of(settings) not in self._registry.records]
        for settings in new:
            key = key_of(settings)
            self._registry.records[key] = ActorRecord(settings)
            self._registry.post(Added(key))
            self._manager.watch(key)
        keys = [key_of(settings) for settings in new]
        try:
            if not await self._registry.until(lambda: self._are_seen(keys), _CREATE_SECONDS):
                missing = ", ".join(str(key) for key in keys if not self._are_seen([key]))
                raise OperationError("scale", f"{missing} did not start within {_CREATE_SECONDS:g} seconds")
        except BaseException:
            await self._remove_unplaced()
            raise

    async def _remove_unplaced(self) -> None:
        """Remove the expert actors that are in neither placement, once no dense actor uses them."""
        if not self._registry.state.is_switched:
            return
        for key in self._unplaced():
            record = self._registry.records.pop(key)
            self._manager.unwatch(key)
            self._registry.post(Removed(key))
            try:
                if record.actor is not None:
                    await record.actor.stop(2.0)
            except UNANSWERED as error:
                logger.warning("%s does not stop by itself: %r", key, error)
            try:
                if record.actor is not None:
                    await record.actor.remove()
                await self._manager.give_back(record.settings)
            except UNANSWERED as error:
                logger.error("%s is not removed: %r", key, error)

    def _holders(self, indices: list[int]) -> list[Holder]:
        if not indices:
            raise ValueError("no expert actor is there, expected at least 1")
        counts = slot_counts(len(indices), self._config.expert_replicas, self._config.redundant_slots)
        holders = []
        for index, num_slots in zip(indices, counts, strict=True):
            heartbeat = self._registry.records[ActorKey("expert", index)].heartbeat
            holders.append(
                Holder(
                    index=index, node=heartbeat.node_ip if heartbeat is not None else "", num_slots=num_slots
                )
            )
        return holders

    def _who_is_away(self, target: Placement) -> str | None:
        for index, experts in target.slots.items():
            if experts and self._manager.is_away(index):
                return f"expert-{index} stays away"
        return None

    def _unplaced(self) -> list[ActorKey]:
        if self._reconciler.placement is None:
            return []
        return [key for key in self._registry.keys("expert") if not self._reconciler.has_place(key.index)]

    def _are_seen(self, keys: list[ActorKey]) -> bool:
        return all(self._registry.state.places[key].phase not in ("unseen", "absent") for key in keys)

    def _check_number(self, expert_actors: int) -> None:
        least = self._config.expert_replicas
        if not self._registry.keys("expert"):
            raise ValueError("exchange is 'local', which has no expert actors to scale")
        if not least <= expert_actors <= NUM_EXPERTS:
            raise ValueError(f"expert_actors is {expert_actors}, expected {least} to {NUM_EXPERTS}")

    def _say(self, step: str) -> None:
        assert self._current is not None
        self._current = OperationView(name=self._current.name, step=step)

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        if self._current is not None:
            raise OperationError(name, f"{self._current.name} is under way: wait until it is done")
        if self._registry.keys("expert") and self._reconciler.placement is None:
            raise OperationError(name, "the service is starting")
        self._current = OperationView(name=name, step="beginning")
        try:
            yield
        finally:
            self._current = None
            self._registry.notify()
