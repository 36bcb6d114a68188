"""The supervisor over actors that live in this process and die on command."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest

from actors.errors import StaleEpochError
from actors.messages import ActorReport, Membership, Progress
from actors.settings import DenseSettings, ExpertSettings
from cluster.config import ClusterConfig
from cluster.hosting import Fleet, plan_actors
from cluster.membership import ActorKey
from cluster.remote import ActorDeadError, ActorLostError, OperationError
from cluster.roster import actor_name, key_of
from cluster.supervisor import Supervisor
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
    """A place whose process can be killed or stopped; as with Ray, the next process appears by itself."""

    pids = itertools.count(100)

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        self.settings = settings
        self.joined: list[Membership] = []
        self.failing_joins = 0
        self.load_error: str | None = None
        self.is_removed = False
        self.num_running = 0
        self.num_replaced = 0
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
        """Die, with no room for another process until `has_room`."""
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

    async def pulse(self, deadline_seconds: float) -> Pulse:
        await self._answer(deadline_seconds)
        progress = Progress(state=self.state, bytes_done=0, bytes_total=1, error=self.error)
        return Pulse(incarnation=str(self.pid), pid=self.pid, node_ip="127.0.0.1", progress=progress)

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
            kind=key_of(self.settings).kind,
            index=self.settings.index,
            pid=self.pid,
            node_ip="127.0.0.1",
            device="cpu",
            state=self.report_state,
            epoch=self.epoch,
            experts=tuple(sorted(self.experts)),
            memory_bytes=5,
            lost_links=self.lost_links,
            expert_load=self.expert_load,
            detail={"running": self.num_running, "waiting": 0},
        )

    async def wait_for_end(self) -> None:
        await self._end.wait()
        raise ActorLostError(self.name, "killed")

    async def stop(self, deadline_seconds: float) -> None: ...

    async def replace(self, pulse: Pulse | None, deadline_seconds: float) -> None:
        if pulse is None or pulse.incarnation == str(self.pid):
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
        self.notes: bytes | None = None
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

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        assert self.actors.pop(key_of(settings)).is_removed

    async def release(self) -> None:
        self.is_released, self.notes = True, None

    async def save(self, notes: bytes) -> None:
        if self.is_head_away:
            raise ActorLostError("head", "restarting")
        self.notes = notes

    async def load(self) -> bytes | None:
        return self.notes

    def expert(self, index: int) -> LocalActor:
        return self.actors[ActorKey("expert", index)]


Case: TypeAlias = Callable[[Supervisor, LocalPool], Coroutine[Any, Any, None]]


def supervised(**keys: Any) -> Callable[[Case], Callable[[], None]]:
    """Runs a test with a supervisor that was not started yet, and a pool that must be empty afterwards."""

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
    """End a supervisor as a signal would: its actors and its notes stay."""
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


@supervised()
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


@supervised()
async def test_places_are_taken_once_the_cluster_has_room(supervisor: Supervisor, pool: LocalPool) -> None:
    pool.failing_plans = 1
    supervisor.start()
    await until(lambda: supervisor.startup().failure == "no room yet")
    await until_ready(supervisor)
    assert supervisor.startup().failure is None


@supervised()
async def test_an_actor_whose_report_makes_no_sense_is_still_watched(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    dense = pool.actors[DENSE]
    dense.expert_load = ((1, 2), (3,))
    dense.num_reports = 0
    await until(lambda: dense.num_reports >= 3)
    dense.expert_load = ()
    dense.die()
    await until(lambda: not supervisor.startup().is_ready)
    await until_ready(supervisor)
    assert (await restarts(supervisor))["dense-0"] == 1


@supervised()
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


@supervised()
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


@supervised()
async def test_a_round_that_fails_is_repeated(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until(lambda: EXPERT_0 in pool.actors)
    pool.actors[EXPERT_0].failing_joins = 2
    await until_all_ready(supervisor)
    assert (await supervisor.view()).epoch == 3


@supervised()
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


@supervised()
async def test_an_actor_that_cannot_load_is_a_failure_with_its_reason(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    pool.load_error = "config.json: hidden_size is -1"
    supervisor.start()
    await until(lambda: supervisor.startup().failure is not None)
    assert "hidden_size is -1" in str(supervisor.startup().failure)


@supervised()
async def test_doors_that_do_not_change_are_told_after_the_wait(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    doors = await supervisor.doors(0, 5)
    assert await supervisor.doors(doors.version, 0.05) == doors


REPLICATED: dict[str, Any] = {"expert_actors": 3, "expert_replicas": 2, "dense_actors": 2}


@supervised(**REPLICATED)
async def test_every_expert_has_its_replicas_on_different_actors(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    held = [expert for index in range(3) for expert in pool.expert(index).experts]
    assert sorted(held) == sorted([*range(16), *range(16)])
    assert len((await supervisor.doors(0, 5)).dense) == 2


@supervised(**REPLICATED)
async def test_a_death_with_replicas_is_followed_by_a_round_without_the_dead(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    before = set(pool.expert(1).experts)
    pool.expert(1).die()
    await until(lambda: pool.actors[DENSE].epoch == 2)
    assert supervisor.startup().is_ready
    assert [member.index for member in pool.actors[DENSE].joined[-1].experts] == [0, 2]
    await until(lambda: pool.actors[DENSE].epoch == 3)
    await until_all_ready(supervisor)
    assert pool.expert(1).experts == before and pool.expert(0).joined[-1] == pool.actors[DENSE].joined[-1]
    assert await restarts(supervisor) == {
        "dense-0": 0,
        "dense-1": 0,
        "expert-0": 0,
        "expert-1": 1,
        "expert-2": 0,
        "supervisor": 0,
    }


@supervised(**REPLICATED)
async def test_a_hung_actor_is_left_out_killed_and_replaced(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(0).is_stopped = True
    await until(lambda: pool.expert(0).num_replaced == 1, 3)
    await until(lambda: len(pool.actors[DENSE].joined[-1].experts) == 3 and pool.expert(0).epoch > 0)
    await until_all_ready(supervisor)
    assert (await restarts(supervisor))["expert-0"] == 1


@supervised(**REPLICATED)
async def test_a_suspected_actor_that_answers_is_left_alone(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[DENSE].lost_links = ("expert-2",)
    await until(lambda: pool.actors[DENSE].epoch == 2)
    await asyncio.sleep(0.5)
    assert pool.expert(2).num_replaced == 0


@supervised()
async def test_growing_moves_experts_before_the_table_names_the_new_actor(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    await supervisor.scale(3)
    members = pool.actors[DENSE].joined[-1]
    assert [len(member.experts) for member in members.experts] == [6, 5, 5]
    await until(lambda: [len(pool.expert(index).experts) for index in range(3)] == [6, 5, 5])
    view = await supervisor.view()
    assert view.placement_version == 2 and view.operation is None
    assert [len(actor.experts) for actor in view.actors if actor.kind == "expert"] == [6, 5, 5]


@supervised(expert_actors=4)
async def test_shrinking_removes_the_last_actors_once_nobody_needs_them(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    gone = pool.expert(3)
    await supervisor.scale(2)
    assert gone.is_removed and not gone.dropped
    assert [len(pool.expert(index).experts) for index in range(2)] == [8, 8]
    assert sorted(pool.actors) == [DENSE, EXPERT_0, ActorKey("expert", 1)]
    await until_all_ready(supervisor)


@supervised()
async def test_a_death_while_experts_move_delays_the_move_only(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    scaling = asyncio.create_task(supervisor.scale(1))
    pool.expert(0).hold_seconds = 0.5
    await until(lambda: pool.expert(0).state == "loading")
    assert (await supervisor.view()).operation is not None
    pool.expert(0).die()
    await asyncio.wait_for(scaling, 10)
    assert pool.expert(0).experts == set(range(16))
    assert pool.expert(0).started_with[-1] == tuple(range(16))


@supervised()
async def test_a_move_that_cannot_be_loaded_leaves_everything_as_it_was(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(0).hold_error = "out of memory"
    with pytest.raises(OperationError, match="expert-0 cannot load: out of memory"):
        await supervisor.scale(1)
    assert [len(pool.expert(index).experts) for index in range(2)] == [8, 8]
    view = await supervisor.view()
    assert view.placement_version == 1 and view.operation is None
    pool.expert(0).hold_error = None
    await supervisor.scale(1)
    assert pool.expert(0).experts == set(range(16))


@supervised()
async def test_one_operation_at_a_time(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    scaling = asyncio.create_task(supervisor.scale(3))
    await asyncio.sleep(0)
    with pytest.raises(OperationError, match="scale is under way"):
        await supervisor.rebalance()
    await scaling


@supervised(expert_actors=3, expert_replicas=2)
async def test_fewer_actors_than_replicas_are_refused(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    with pytest.raises(ValueError, match="expert_actors is 1, expected 2 to 16"):
        await supervisor.scale(1)


@supervised(redundant_slots=1)
async def test_a_rebalance_follows_the_measured_load(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    hot = max(pool.expert(0).experts - pool.expert(1).experts)
    pool.actors[DENSE].expert_load = (tuple(100_000 if expert == hot else 1000 for expert in range(16)),)
    await until(lambda: supervisor._recent.loads() is not None)
    await supervisor.rebalance()
    await until(lambda: hot in pool.expert(1).experts and len(pool.expert(1).experts) == 9)
    assert hot in pool.expert(0).experts


@supervised(redundant_slots=1, rebalance_interval_seconds=0.2)
async def test_a_load_that_lasts_leads_to_a_rebalance_by_itself(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    hot = max(pool.expert(0).experts - pool.expert(1).experts)
    pool.actors[DENSE].expert_load = (tuple(100_000 if expert == hot else 1000 for expert in range(16)),)
    await until(lambda: hot in pool.expert(1).experts)


@supervised(**REPLICATED)
async def test_a_rolling_restart_replaces_everybody_and_never_two_at_a_time(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    before = {key: actor.pid for key, actor in pool.actors.items()}
    restarting = asyncio.create_task(supervisor.restart())
    while not restarting.done():
        await asyncio.sleep(0.01)
        assert supervisor.startup().is_ready
        assert sum(actor.state != "loaded" for actor in pool.actors.values()) <= 1
    await restarting
    assert all(pool.actors[key].pid != pid for key, pid in before.items())
    assert {name: count for name, count in (await restarts(supervisor)).items() if count != 1} == {
        "supervisor": 0
    }


@supervised(**REPLICATED)
async def test_a_new_supervisor_finds_everything_as_it_was(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    await supervisor.scale(4)
    pool.expert(0).die()
    await until(lambda: pool.expert(0).epoch > 0)
    await until_all_ready(supervisor)
    slots = {index: set(pool.expert(index).experts) for index in range(4)}
    epoch = (await supervisor.view()).epoch
    await asyncio.sleep(0.1)
    await kill(supervisor)
    pool.expert(3).die()
    second = new_supervisor(pool, **REPLICATED)
    try:
        second.start()
        await until_all_ready(second)
        await until(lambda: {index: set(pool.expert(index).experts) for index in range(4)} == slots)
        view = await second.view()
        assert view.epoch > epoch and view.placement_version == 2
        counts = await restarts(second)
        assert (counts["expert-0"], counts["expert-1"], counts["expert-3"]) == (1, 0, 1)
        assert all(len(members.experts) >= 3 for members in pool.actors[DENSE].joined)
    finally:
        await kill(second)


@supervised()
async def test_a_new_supervisor_finishes_what_was_begun(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(0).hold_seconds = 0.5
    scaling = asyncio.create_task(supervisor.scale(1))
    await until(lambda: pool.expert(0).state == "loading")
    assert json.loads(pool.notes or b"")["target"]["version"] == 2
    await kill(supervisor)
    scaling.cancel()
    second = new_supervisor(pool)
    try:
        second.start()
        await until(lambda: ActorKey("expert", 1) not in pool.actors)
        assert pool.expert(0).experts == set(range(16))
    finally:
        await kill(second)


@supervised()
async def test_a_new_supervisor_ends_an_actor_that_hangs(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    await asyncio.sleep(0.1)
    await kill(supervisor)
    pool.expert(1).is_stopped = True
    second = new_supervisor(pool)
    try:
        second.start()
        await until_all_ready(second)
        assert pool.expert(1).num_replaced == 1 and (await restarts(second))["expert-1"] == 1
    finally:
        await kill(second)


@supervised()
async def test_a_head_that_is_away_stops_nothing(supervisor: Supervisor, pool: LocalPool) -> None:
    pool.is_head_away = True
    supervisor.start()
    await until_ready(supervisor)
    pool.is_head_away = False
    await until(lambda: pool.notes is not None)


@supervised()
async def test_epochs_go_on_above_what_an_actor_has_seen(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until(lambda: EXPERT_0 in pool.actors)
    pool.actors[EXPERT_0].epoch = 41
    await until_ready(supervisor)
    assert (await supervisor.view()).epoch > 41


@supervised()
async def test_a_drain_is_told_to_every_ingress_and_ends_when_nothing_runs(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    doors = await supervisor.doors(0, 5)
    assert doors.drain_seconds is None
    pool.actors[DENSE].num_running = 1
    draining = asyncio.create_task(supervisor.drain(30))
    assert (await supervisor.doors(doors.version, 5)).drain_seconds == 30
    await asyncio.sleep(0.6)
    assert not draining.done()
    pool.actors[DENSE].num_running = 0
    await asyncio.wait_for(draining, 5)


@supervised()
async def test_a_drain_ends_with_its_grace_period(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[DENSE].num_running = 1
    await asyncio.wait_for(supervisor.drain(0.1), 5)


AWAY: dict[str, Any] = {"replace_after_seconds": 0.5}


def counts(pool: LocalPool, *indices: int) -> list[int]:
    return [len(pool.expert(index).experts) for index in indices]


@supervised(**AWAY)
async def test_experts_of_an_actor_that_stays_away_go_to_the_others_and_back_when_it_is_there_again(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    gone = pool.expert(1)
    pool.expert(0).hold_seconds = 0.3
    gone.leave()
    await until(lambda: not supervisor.startup().is_ready)
    await until(lambda: pool.expert(0).state == "loading")
    operation = (await supervisor.view()).operation
    assert operation is not None and (operation.name, operation.total) == ("replace", 8)
    await until_ready(supervisor)
    members = pool.actors[DENSE].joined[-1]
    assert [(member.index, member.experts) for member in members.experts] == [(0, tuple(range(16)))]
    view = await supervisor.view()
    assert [(len(actor.experts), actor.state) for actor in view.actors if actor.kind == "expert"] == [
        (16, "ready"),
        (0, "lost"),
    ]
    await asyncio.sleep(0.6)
    assert pool.expert(1) is gone and not gone.is_removed
    gone.has_room = True
    await until(lambda: len(pool.actors[DENSE].joined[-1].experts) == 2)
    await until(lambda: counts(pool, 0, 1) == [8, 8])
    await until_all_ready(supervisor)
    assert supervisor.startup().is_ready and (await supervisor.view()).operation is None


@supervised(replace_after_seconds=0)
async def test_with_0_an_actor_that_stays_away_is_waited_for(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(1).leave()
    await asyncio.sleep(1.0)
    assert not supervisor.startup().is_ready and counts(pool, 0) == [8]
    pool.expert(1).has_room = True
    await until_all_ready(supervisor)


@supervised(**REPLICATED, **AWAY)
async def test_where_memory_is_short_the_others_keep_what_they_have(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(0).hold_error = pool.expert(2).hold_error = "out of memory"
    pool.expert(1).leave()
    await until(lambda: pool.expert(0).state == pool.expert(2).state == "failed")
    await until(lambda: supervisor._operations.current is None)
    assert supervisor.startup().is_ready and sum(counts(pool, 0, 2)) < 32
    pool.expert(0).hold_error = pool.expert(2).hold_error = None
    await until(lambda: counts(pool, 0, 2) == [16, 16])
    assert supervisor.startup().is_ready


@supervised(expert_actors=3, **AWAY)
async def test_two_that_stay_away_are_replaced_together(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(0).leave()
    pool.expert(2).leave()
    await until(lambda: counts(pool, 1) == [16])
    await until_ready(supervisor)
    assert (await supervisor.view()).placement_version == 2


@supervised(expert_actors=3, **AWAY)
async def test_an_operation_that_needs_an_actor_that_stays_away_gives_up(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(1).hold_seconds = 60.0
    scaling = asyncio.create_task(supervisor.scale(2))
    await until(lambda: pool.expert(1).state == "loading")
    pool.expert(1).leave()
    with pytest.raises(OperationError, match="expert-1 stays away"):
        await asyncio.wait_for(scaling, 10)
    await until_ready(supervisor)
    await until(lambda: counts(pool, 0, 2) == [8, 8])
    with pytest.raises(OperationError, match="expert-1 stays away"):
        await supervisor.restart()
    await supervisor.scale(2)
    assert counts(pool, 0) == [16] and sorted(pool.actors)[1:] == [EXPERT_0, ActorKey("expert", 1)]


@supervised(**AWAY)
async def test_a_new_supervisor_knows_who_stays_away_and_gives_experts_back(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.expert(1).leave()
    await until(lambda: counts(pool, 0) == [16])
    await until_ready(supervisor)
    await asyncio.sleep(0.1)
    await kill(supervisor)
    second = new_supervisor(pool, **AWAY)
    try:
        second.start()
        await until_ready(second)
        assert counts(pool, 0) == [16]
        pool.expert(1).has_room = True
        await until(lambda: counts(pool, 0, 1) == [8, 8])
        await until_all_ready(second)
    finally:
        await kill(second)


@supervised(**REPLICATED)
async def test_a_new_supervisor_does_not_wait_for_an_actor_that_waits_for_room(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    gone = pool.expert(1)
    gone.is_dead = True
    gone.die()
    gone.is_stopped = True
    await until(lambda: pool.actors[DENSE].epoch == 2)
    await until(lambda: not gone.is_dead and b'"incarnation":null' in (pool.notes or b""))
    await kill(supervisor)
    second = new_supervisor(pool, **REPLICATED)
    try:
        second.start()
        await until(lambda: second.startup().is_ready)
        pool.actors[ActorKey("dense", 1)].die()
        await until(lambda: pool.actors[ActorKey("dense", 1)].epoch > 2)
    finally:
        await kill(second)
