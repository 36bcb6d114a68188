"""Actors for a supervisor that live in the test's process and die on command."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from actors.errors import StaleEpochError
from actors.protocol.messages import ActorReport, Load, Membership, Progress
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import Heartbeat
from cluster.ray_actors.actor_settings import Fleet, plan_actors
from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.membership.registry import actor_name, key_of
from cluster.supervisor.remote_actor import ActorDeadError, ActorLostError
from cluster.supervisor.supervisor import Supervisor
from tests.support.views import actor_view

DENSE, EXPERT_0 = ActorKey("dense", 0), ActorKey("expert", 0)
ME = actor_view("phimoe-supervisor", "supervisor")


class LocalActor:
    """A place whose process can be killed or stopped. As with Ray, the next process starts by itself."""

    pids = itertools.count(100)

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        self.settings = settings
        self.joined: list[Membership] = []
        self.failing_joins = 0
        self.load_error: str | None = None
        self.is_removed = False
        self.num_running = 0
        self.num_replaced = 0
        self.num_begun_to_replace = 0
        self.replace_seconds = 0.0
        self.has_room = True
        self.is_dead = False
        self.num_reports = 0
        self.hold_seconds = 0.05
        self.hold_error: str | None = None
        self.started_with: list[tuple[int, ...] | None] = []
        self.dropped: list[tuple[int, ...]] = []
        self.expert_load: tuple[tuple[int, ...], ...] = ()
        self._begin()

    def _begin(self) -> None:
        self.pid, self.state, self.report_state, self.epoch = next(self.pids), "starting", "starting", -1
        self.experts: set[int] = set()
        self.lost_links: tuple[str, ...] = ()
        self.is_stopped = False
        self.error: str | None = None
        self._end = asyncio.Event()

    @property
    def name(self) -> str:
        return actor_name(key_of(self.settings))

    def die(self) -> None:
        self._end.set()
        self._begin()

    def leave(self) -> None:
        """Die, without room for another process until `has_room`."""
        self.has_room = False
        self.die()

    async def _answer(self, deadline_seconds: float) -> None:
        if self.is_dead:
            self.is_dead = False
            raise ActorDeadError(self.name, "it is gone for good")
        if not self.has_room:
            raise ActorLostError(self.name, "there is no room for it")
        if self.is_stopped:
            await asyncio.sleep(deadline_seconds)
            raise asyncio.TimeoutError

    async def heartbeat(self, deadline_seconds: float) -> Heartbeat:
        await self._answer(deadline_seconds)
        progress = Progress(state=self.state, bytes_done=0, bytes_total=1, error=self.error)
        return Heartbeat(incarnation=str(self.pid), pid=self.pid, node_ip="127.0.0.1", progress=progress)

    async def start_loading(self, experts: tuple[int, ...] | None, deadline_seconds: float) -> None:
        self.error, self.state = self.load_error, "failed" if self.load_error else "loaded"
        if isinstance(self.settings, ExpertSettings):
            self.started_with.append(experts)
            self.experts = set(self.settings.experts if experts is None else experts)

    async def hold(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        self.state = "loading"
        pid = self.pid
        await asyncio.sleep(0)

        async def load() -> None:
            await asyncio.sleep(self.hold_seconds)
            if self.pid == pid:
                self.error, self.state = self.hold_error, "failed" if self.hold_error else "loaded"
                self.experts |= set() if self.hold_error else set(experts)

        self._loading = asyncio.create_task(load())

    async def drop(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        self.dropped.append(experts)
        self.experts -= set(experts)

    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]:
        return "127.0.0.1", self.pid, "127.0.0.1", self.pid

    async def join(self, members: Membership, deadline_seconds: float) -> None:
        await self._answer(deadline_seconds)
        if self.failing_joins:
            self.failing_joins -= 1
            raise ActorLostError(self.name, "the link did not come up")
        if members.epoch <= self.epoch:
            raise StaleEpochError(members.epoch, self.epoch)
        if isinstance(self.settings, ExpertSettings):
            (mine,) = [item for item in members.experts if item.index == self.settings.index]
            assert set(mine.experts) <= self.experts and mine.incarnation == str(self.pid)
        self.joined.append(members)
        self.epoch, self.report_state, self.lost_links = members.epoch, "ready", ()

    async def report(self, deadline_seconds: float) -> ActorReport:
        await self._answer(deadline_seconds)
        self.num_reports += 1
        return ActorReport(
            device="cpu",
            state=self.report_state,
            epoch=self.epoch,
            experts=tuple(sorted(self.experts)),
            memory_bytes=5,
            lost_links=self.lost_links,
            expert_load=self.expert_load,
            load=Load(running=self.num_running, waiting=0, free_blocks=0, total_blocks=0),
        )

    async def wait_for_end(self) -> None:
        await self._end.wait()
        raise ActorLostError(self.name, "killed")

    async def stop(self, deadline_seconds: float) -> None: ...

    async def replace(self, heartbeat: Heartbeat | None, deadline_seconds: float) -> None:
        self.num_begun_to_replace += 1
        await asyncio.sleep(self.replace_seconds)
        if heartbeat is None or heartbeat.incarnation == str(self.pid):
            self.num_replaced += 1
            self.die()

    async def remove(self) -> None:
        self.is_removed = True


class LocalPool:
    def __init__(self) -> None:
        self.actors: dict[ActorKey, LocalActor] = {}
        self.is_released = False
        self.load_error: str | None = None
        self.failing_plans = 0
        self.snapshot: bytes | None = None
        self.is_head_away = False
        self.room = 100

    async def plan(
        self, config: ClusterConfig, token: str, num_experts: int, device: str | None
    ) -> list[DenseSettings | ExpertSettings]:
        if self.failing_plans:
            self.failing_plans -= 1
            raise ValueError("no room yet")
        fleet = Fleet(num_nodes=1, cores_per_node=2, num_gpus=0)
        return plan_actors(config, token, fleet, num_experts, device)

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> LocalActor:
        actor = self.actors.setdefault(key_of(settings), LocalActor(settings))
        if actor.is_removed:
            actor = self.actors[key_of(settings)] = LocalActor(settings)
        actor.load_error = self.load_error
        return actor

    async def maintain(self) -> None:
        """Do nothing, since no place is ever lost."""

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        assert self.actors.pop(key_of(settings)).is_removed

    async def release(self) -> None:
        self.is_released, self.snapshot = True, None

    async def save(self, snapshot: bytes) -> None:
        if self.is_head_away:
            raise ActorLostError("head", "restarting")
        self.snapshot = snapshot

    async def load(self) -> bytes | None:
        return self.snapshot

    def expert(self, index: int) -> LocalActor:
        return self.actors[ActorKey("expert", index)]


Case: TypeAlias = Callable[[Supervisor, LocalPool], Coroutine[Any, Any, None]]


def supervised(**keys: Any) -> Callable[[Case], Callable[[], None]]:
    """Run a test with a supervisor that is not started yet, and with a pool that must be empty at the end."""

    def wrap(test: Case) -> Callable[[], None]:
        async def run() -> None:
            pool = LocalPool()
            supervisor = new_supervisor(pool, **keys)
            try:
                await test(supervisor, pool)
            finally:
                await supervisor.shut_down()
            assert pool.is_released and all(actor.is_removed for actor in pool.actors.values())

        def sync() -> None:
            asyncio.run(run())

        sync.__name__ = test.__name__
        return sync

    return wrap


def new_supervisor(pool: LocalPool, **keys: Any) -> Supervisor:
    config = ClusterConfig(**{"expert_actors": 2, "hung_after_seconds": 0.3, **keys})
    return Supervisor(config, "token", pool, ME)


async def kill(supervisor: Supervisor) -> None:
    """End a supervisor as a signal would: its actors and its snapshot stay."""
    tasks = list(supervisor._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def restarts(supervisor: Supervisor) -> dict[str, int]:
    return {actor.name.removeprefix("phimoe-"): actor.restarts for actor in (await supervisor.view()).actors}


async def until_all_ready(supervisor: Supervisor) -> None:
    async def poll() -> None:
        while not all(actor.state == "ready" for actor in (await supervisor.view()).actors):
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), 10)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), seconds)


async def until_ready(supervisor: Supervisor) -> None:
    await until(lambda: supervisor.startup().is_ready)


REPLICATED: dict[str, Any] = {"expert_actors": 3, "expert_replicas": 2, "dense_actors": 2}
