"""The supervisor over actors that live in this process and die on command."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from actors.messages import ActorReport, Membership, Progress
from actors.settings import DenseSettings, ExpertSettings
from cluster.config import ClusterConfig
from cluster.hosting import Fleet, plan_actors
from cluster.membership import ActorKey
from cluster.remote import ActorLostError
from cluster.supervisor import Supervisor, actor_name, key_of
from cluster.view import ActorView, Pulse

DENSE, EXPERT_0 = ActorKey("dense", 0), ActorKey("expert", 0)
ME = ActorView(
    name="phimoe-supervisor",
    kind="supervisor",
    index=0,
    pid=1,
    node_ip="",
    device="cpu",
    state="ready",
    restarts=0,
    experts=(),
    memory_bytes=0,
)


class LocalActor:
    """A place whose process can be killed; as with Ray, the next process appears by itself."""

    pids = itertools.count(100)

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        self.settings = settings
        self.joined: list[Membership] = []
        self.failing_joins = 0
        self.load_error: str | None = None
        self.is_removed = False
        self._begin()

    def _begin(self) -> None:
        self.pid, self.state, self.report_state, self.epoch = next(self.pids), "starting", "starting", -1
        self._end = asyncio.Event()

    def die(self) -> None:
        self._end.set()
        self._begin()

    async def pulse(self, deadline_seconds: float) -> Pulse:
        progress = Progress(state=self.state, bytes_done=0, bytes_total=1, error=self.load_error)
        return Pulse(incarnation=str(self.pid), pid=self.pid, node_ip="127.0.0.1", progress=progress)

    async def start_loading(self, deadline_seconds: float) -> None:
        self.state = "failed" if self.load_error else "loaded"

    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]:
        return "127.0.0.1", self.pid, "127.0.0.1", self.pid

    async def join(self, members: Membership, deadline_seconds: float) -> None:
        if self.failing_joins:
            self.failing_joins -= 1
            raise ActorLostError(actor_name(key_of(self.settings)), "the link did not come up")
        self.joined.append(members)
        self.epoch, self.report_state = members.epoch, "ready"

    async def report(self, deadline_seconds: float) -> ActorReport:
        return ActorReport(
            kind=key_of(self.settings).kind,
            index=self.settings.index,
            pid=self.pid,
            node_ip="127.0.0.1",
            device="cpu",
            state=self.report_state,
            epoch=self.epoch,
            experts=(),
            memory_bytes=5,
        )

    async def wait_for_end(self) -> None:
        await self._end.wait()
        raise ActorLostError(actor_name(key_of(self.settings)), "killed")

    async def stop(self, deadline_seconds: float) -> None: ...

    async def replace(self) -> None:
        self.die()

    async def remove(self) -> None:
        self.is_removed = True


class LocalPool:
    def __init__(self) -> None:
        self.actors: dict[ActorKey, LocalActor] = {}
        self.is_released = False
        self.load_error: str | None = None
        self.failing_plans = 0

    async def plan(self, config: ClusterConfig, token: str) -> list[DenseSettings | ExpertSettings]:
        if self.failing_plans:
            self.failing_plans -= 1
            raise ValueError("no room yet")
        fleet = Fleet(num_nodes=1, cores_per_node=2, num_gpus=0)
        return plan_actors(config, token, fleet, config.num_expert_actors)

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> LocalActor:
        actor = self.actors.setdefault(key_of(settings), LocalActor(settings))
        actor.load_error = self.load_error
        return actor

    async def release(self) -> None:
        self.is_released = True


def supervised(
    test: Callable[[Supervisor, LocalPool], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    async def run() -> None:
        pool = LocalPool()
        supervisor = Supervisor(ClusterConfig(expert_actors=2), "token", pool, ME)
        try:
            await test(supervisor, pool)
        finally:
            await supervisor.shut_down()
        assert pool.is_released and all(actor.is_removed for actor in pool.actors.values())

    def sync() -> None:
        asyncio.run(run())

    sync.__name__ = test.__name__
    return sync


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), seconds)


async def until_ready(supervisor: Supervisor) -> None:
    await until(lambda: supervisor.startup().is_ready)


@supervised
async def test_all_actors_are_created_loaded_and_joined(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    view = await supervisor.view()
    assert view.epoch == 1
    assert [(actor.name, actor.state) for actor in view.actors] == [
        ("phimoe-dense-0", "ready"),
        ("phimoe-expert-0", "ready"),
        ("phimoe-expert-1", "ready"),
        ("phimoe-supervisor", "ready"),
    ]
    members = pool.actors[DENSE].joined[0]
    assert [member.experts for member in members.experts] == [tuple(range(8)), tuple(range(8, 16))]
    assert all(actor.joined == [members] for actor in pool.actors.values())


@supervised
async def test_places_are_taken_once_the_cluster_has_room(supervisor: Supervisor, pool: LocalPool) -> None:
    pool.failing_plans = 1
    supervisor.start()
    await until(lambda: supervisor.startup().failure == "no room yet")
    await until_ready(supervisor)
    assert supervisor.startup().failure is None


@supervised
async def test_a_killed_expert_actor_comes_back_under_the_next_epoch(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[EXPERT_0].die()
    await until(lambda: not supervisor.startup().is_ready)
    await until_ready(supervisor)
    view = await supervisor.view()
    assert view.epoch == 2
    assert {actor.name: actor.restarts for actor in view.actors}["phimoe-expert-0"] == 1
    assert all([members.epoch for members in actor.joined][-1] == 2 for actor in pool.actors.values())


@supervised
async def test_a_killed_dense_actor_opens_another_door(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    doors = await supervisor.doors(0, 5)
    assert doors.dense[0].port == pool.actors[DENSE].pid
    pool.actors[DENSE].die()
    gone = await supervisor.doors(doors.version, 5)
    assert gone.dense == ()
    back = await supervisor.doors(gone.version, 5)
    assert back.dense[0].port == pool.actors[DENSE].pid != doors.dense[0].port


@supervised
async def test_a_round_that_fails_is_repeated(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until(lambda: EXPERT_0 in pool.actors)
    pool.actors[EXPERT_0].failing_joins = 2
    await until_ready(supervisor)
    assert (await supervisor.view()).epoch == 3


@supervised
async def test_an_actor_whose_links_broke_is_called_to_a_new_round(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[DENSE].report_state = "lost"
    await until(lambda: pool.actors[DENSE].report_state == "ready")
    await until_ready(supervisor)
    view = await supervisor.view()
    assert view.epoch == 2 and all(actor.restarts == 0 for actor in view.actors)


@supervised
async def test_an_actor_that_cannot_load_is_a_failure_with_its_reason(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    pool.load_error = "config.json: hidden_size is -1"
    supervisor.start()
    await until(lambda: supervisor.startup().failure is not None)
    assert "hidden_size is -1" in str(supervisor.startup().failure)


@supervised
async def test_doors_that_do_not_change_are_told_after_the_wait(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    doors = await supervisor.doors(0, 5)
    assert await supervisor.doors(doors.version, 0.05) == doors
