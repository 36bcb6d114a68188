"""The supervisor keeps the service whole. It connects the parts; each decision is made in one of them.

    watcher --events--> registry (membership.advance) --decisions--> loading, rounds
    operations --target--> reconciler --hold, table, drop--> expert actors
    what must outlive the supervisor --> snapshot, kept by the pool

The supervisor reaches actors through the protocols of `cluster.supervisor.remote_actor`, which
`cluster.ray_actors.actors` fulfils with Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from actors.protocol.messages import ActorReport
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import ActorView, ClusterView, DenseAddresses, Startup
from cluster.supervisor import snapshot
from cluster.supervisor.membership import membership
from cluster.supervisor.membership.dense_addresses import AddressBoard
from cluster.supervisor.membership.membership import ActorKey, Place
from cluster.supervisor.membership.registry import ActorRecord, Registry, key_of
from cluster.supervisor.membership.rounds import Rounds
from cluster.supervisor.membership.watcher import Watcher
from cluster.supervisor.operations.messages import Operation
from cluster.supervisor.operations.operations import Operations
from cluster.supervisor.operations.rebalance_trigger import RecentLoads
from cluster.supervisor.operations.replacement import Replacement
from cluster.supervisor.placement.reconciler import PlacementReconciler
from cluster.supervisor.remote_actor import CALL_SECONDS, UNANSWERED, ActorPool
from cluster.supervisor.snapshot import Snapshot
from cluster.supervisor.status import actor_views, startup

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0
_PLAN_AGAIN_SECONDS = 2.0
_SAVE_AGAIN_SECONDS = 1.0
_WATCH_AGAIN_SECONDS = 0.5
_CHECK_SECONDS = 1.0
_MAINTAIN_SECONDS = 1.0


class Supervisor:
    """The supervisor of one service.

    `start` returns at once; `shut_down` ends everything that was created.
    """

    def __init__(self, config: ClusterConfig, token: str, pool: ActorPool, me: ActorView) -> None:
        self._config, self._token, self._pool, self._me = config, token, pool, me
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers: dict[ActorKey, asyncio.Task[None]] = {}
        self._recent = RecentLoads()
        self._device: str | None = None
        """The device of all actors; None until it is chosen."""
        self._saved: Snapshot | None = None
        self._saving = asyncio.Lock()
        self._registry = Registry(self._carry_out)
        self._rounds = Rounds(self._registry, config.connect_deadline_seconds)
        self._addresses = AddressBoard(self._registry, token)
        self._watcher = Watcher(config, self._registry, pool, self._note_load)
        self._reconciler = PlacementReconciler(self._registry, self._save)
        self._operations = Operations(config, self._registry, self._reconciler, self._addresses, self)
        self._replacement = Replacement(
            config, self._registry, self._reconciler, self._operations, self.loads
        )

    def start(self) -> None:
        """Begin to create, load and watch all actors, in the running event loop."""
        self._spawn(self._start())

    async def shut_down(self) -> None:
        """Stop and remove all actors. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        actors = [record.actor for record in self._registry.records.values() if record.actor is not None]
        # `stop` closes an actor's links, so that its peers notice the end at once. An actor that does not
        # answer is removed all the same.
        await asyncio.gather(*(actor.stop(2.0) for actor in actors), return_exceptions=True)
        await asyncio.gather(*(actor.remove() for actor in actors), return_exceptions=True)
        self._registry.begin(membership.first({}, {}), {})
        await self._pool.release()

    async def addresses(self, known_version: int, wait_seconds: float) -> DenseAddresses:
        """Return the dense actors' addresses, at once if they are newer than `known_version`.

        Otherwise wait for a change, at most `wait_seconds`.
        """
        return await self._addresses.get(known_version, wait_seconds)

    async def view(self) -> ClusterView:
        """Return all actors as they are now.

        An actor that does not answer within a second is shown as last seen.
        """
        await asyncio.gather(*(self.refresh(key) for key in list(self._registry.records)))
        placement = self._reconciler.placement
        return ClusterView(
            model=self._config.model_id,
            epoch=self._registry.state.epoch,
            actors=(*actor_views(self._registry), self._me),
            placement_version=placement.version if placement is not None else 0,
            operation=self._operations.current,
        )

    def startup(self) -> Startup:
        """Return how much each actor has loaded, and whether the service is ready."""
        return startup(self._registry)

    async def operate(self, operation: Operation) -> None:
        """Carry out an operation. Raises ValueError, OperationError."""
        await self._operations.operate(operation)

    async def plan(self, num_experts: int) -> list[DenseSettings | ExpertSettings]:
        """Return the settings of all actors for `num_experts` expert actors."""
        return await self._pool.plan(self._config, self._token, num_experts, self._device)

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        """Free the place of an actor that was removed."""
        await self._pool.give_back(settings)

    async def refresh(self, key: ActorKey) -> None:
        """Ask an actor for a new report. If it does not answer within a second, its last report stays."""
        record = self._registry.records.get(key)
        if record is None or record.actor is None or not self._registry.state.places[key].is_up:
            return
        with contextlib.suppress(*UNANSWERED):
            record.report = await record.actor.report(_REPORT_SECONDS)

    def watch(self, key: ActorKey) -> None:
        """Begin to create and follow the actor of a place."""
        self._keepers[key] = self._spawn(self._keep(key))

    def unwatch(self, key: ActorKey) -> None:
        """Stop following the actor of a place."""
        self._keepers.pop(key).cancel()

    def loads(self) -> list[list[float]] | None:
        """Return recent rows per expert, [layer][expert]; None if too few rows were seen to compare them."""
        return self._recent.loads()

    def is_away(self, index: int) -> bool:
        """Return whether an expert actor has been away too long for anything to wait for it."""
        return self._replacement.is_away(index)

    async def _start(self) -> None:
        known, settings = await self._recover()
        records = {key_of(item): ActorRecord(item) for item in settings}
        places = {key: Place() for key in records}
        table: dict[int, tuple[int, ...]] = {}
        if known is not None:
            for place in known.places:
                if place.key in records:
                    records[place.key].heartbeat = place.heartbeat
            places |= {key: place for key, place in snapshot.places_of(known).items() if key in records}
            self._reconciler.placement, self._reconciler.target = known.placement, known.target
            table = dict(known.placement.slots) if known.placement is not None else {}
        epoch = known.epoch if known is not None else 0
        self._registry.begin(membership.first(places, table, epoch), records)
        for key in records:
            self.watch(key)
        for work in (
            self._save_always(),
            self._maintain(),
            self._addresses.follow(),
            self._reconciler.run(),
            self._operate(),
        ):
            self._spawn(work)

    async def _operate(self) -> None:
        if self._reconciler.placement is None:
            await self._operations.place_first()
        self._spawn(self._operations.resume())
        self._spawn(self._operations.remove_unplaced())
        self._spawn(self._operations.rebalance_when_worth_it())
        self._spawn(self._replacement.run())

    async def _recover(self) -> tuple[Snapshot | None, list[DenseSettings | ExpertSettings]]:
        """Return the snapshot of the supervisor that ran before, if any, and the settings of all actors.

        Try until the cluster has room for all actors: while a cluster starts, its nodes join one by one, and
        its head may be down.
        """
        while True:
            try:
                content = await self._pool.load()
                known = snapshot.decode(content, self._config.actor_hash()) if content is not None else None
                num_experts = self._config.num_expert_actors if known is None else known.num_experts
                self._device = known.device if known is not None else None
                settings = await self.plan(num_experts)
                self._device = settings[0].device
            except Exception as error:
                self._registry.failure = str(error)
                logger.warning("cannot place the actors: %s", error)
                await asyncio.sleep(_PLAN_AGAIN_SECONDS)
            else:
                self._registry.failure = None
                return known, settings

    async def _keep(self, key: ActorKey) -> None:
        """Watch one place, and start again after any error: nothing else would notice the next death."""
        while True:
            try:
                await self._watcher.keep(key)
            except Exception:
                logger.exception("watching %s failed and starts again", key)
                await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    def _carry_out(self, decision: membership.Decision) -> None:
        if isinstance(decision, membership.StartLoading):
            self._spawn(self._load(decision.key))
        else:
            self._spawn(self._rounds.hold(decision.epoch, decision.pause_seconds))

    async def _load(self, key: ActorKey) -> None:
        """Wait until it is decided what the process of a place loads, then tell the process."""
        record = self._registry.records[key]
        experts: tuple[int, ...] | None = None
        if isinstance(record.settings, ExpertSettings):
            wanted = await self._experts_for(key)
            if not wanted:
                return
            experts = wanted if wanted != record.settings.experts else None
        if record.actor is None or record.heartbeat is None or record.heartbeat.progress.state != "starting":
            return
        # The watcher sees the failure, too, and handles it.
        with contextlib.suppress(*UNANSWERED):
            await record.actor.start_loading(experts, CALL_SECONDS)

    async def _experts_for(self, key: ActorKey) -> tuple[int, ...]:
        """Wait until the placement gives the place experts, and return them; () if its process ends first."""
        incarnation = self._registry.state.places[key].incarnation

        def is_gone() -> bool:
            place = self._registry.state.places.get(key)
            return place is None or place.phase != "loading" or place.incarnation != incarnation

        while not is_gone() and not self._reconciler.wanted(key.index):
            await self._registry.change(_CHECK_SECONDS)
        return () if is_gone() else self._reconciler.wanted(key.index)

    def _note_load(self, incarnation: str, report: ActorReport) -> None:
        now = asyncio.get_running_loop().time()
        self._recent = self._recent.add(incarnation, report.expert_load, now)

    async def _save(self) -> None:
        """Write the snapshot if it has changed. After a failure `_save_always` tries again."""
        async with self._saving:
            current = snapshot.compose(
                self._config.actor_hash(),
                self._device or "",
                self._registry,
                self._reconciler.placement,
                self._reconciler.target,
            )
            if current == self._saved:
                return
            try:
                await self._pool.save(snapshot.encode(current))
                self._saved = current
            except Exception as error:
                logger.warning("the snapshot cannot be written now: %s", error)

    async def _save_always(self) -> None:
        while True:
            await self._save()
            await self._registry.change(_SAVE_AGAIN_SECONDS)

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(_MAINTAIN_SECONDS)
            try:
                await self._pool.maintain()
            except Exception as error:
                logger.warning("lost places cannot be replaced now: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the supervisor failed", exc_info=task.exception())
