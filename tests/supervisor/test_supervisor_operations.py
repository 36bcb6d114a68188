"""Tests the operations: more or fewer actors, rebalance, restart and drain."""

from __future__ import annotations

import asyncio

import pytest

from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.operations.messages import Drain, Rebalance, Restart, Scale
from cluster.supervisor.remote_actor import OperationError
from cluster.supervisor.supervisor import Supervisor
from tests.support.local_actors import (
    DENSE,
    EXPERT_0,
    REPLICATED,
    LocalPool,
    restarts,
    supervised,
    until,
    until_all_ready,
    until_ready,
)


@supervised()
async def test_growing_moves_experts_before_the_table_names_the_new_actor(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    await supervisor.operate(Scale(expert_actors=3))
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
    await supervisor.operate(Scale(expert_actors=2))
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
    scaling = asyncio.create_task(supervisor.operate(Scale(expert_actors=1)))
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
        await supervisor.operate(Scale(expert_actors=1))
    assert [len(pool.expert(index).experts) for index in range(2)] == [8, 8]
    view = await supervisor.view()
    assert view.placement_version == 1 and view.operation is None
    pool.expert(0).hold_error = None
    await supervisor.operate(Scale(expert_actors=1))
    assert pool.expert(0).experts == set(range(16))


@supervised()
async def test_one_operation_at_a_time(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    scaling = asyncio.create_task(supervisor.operate(Scale(expert_actors=3)))
    await asyncio.sleep(0)
    with pytest.raises(OperationError, match="scale is under way"):
        await supervisor.operate(Rebalance())
    await scaling


@supervised(expert_actors=3, expert_replicas=2)
async def test_fewer_actors_than_replicas_are_refused(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    with pytest.raises(ValueError, match="expert_actors is 1, expected 2 to 16"):
        await supervisor.operate(Scale(expert_actors=1))


@supervised(redundant_slots=1)
async def test_a_rebalance_follows_the_measured_load(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    hot = max(pool.expert(0).experts - pool.expert(1).experts)
    pool.actors[DENSE].expert_load = (tuple(100_000 if expert == hot else 1000 for expert in range(16)),)
    await until(lambda: supervisor._recent.loads() is not None)
    await supervisor.operate(Rebalance())
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
    restarting = asyncio.create_task(supervisor.operate(Restart()))
    while not restarting.done():
        await asyncio.sleep(0.01)
        assert supervisor.startup().is_ready
        assert sum(actor.state != "loaded" for actor in pool.actors.values()) <= 1
    await restarting
    assert all(pool.actors[key].pid != pid for key, pid in before.items())
    assert {name: count for name, count in (await restarts(supervisor)).items() if count != 1} == {
        "supervisor": 0
    }


@supervised()
async def test_a_drain_is_told_to_every_ingress_and_ends_when_nothing_runs(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    addresses = await supervisor.addresses(0, 5)
    assert addresses.drain_seconds is None
    pool.actors[DENSE].num_running = 1
    draining = asyncio.create_task(supervisor.operate(Drain(grace_seconds=30)))
    assert (await supervisor.addresses(addresses.version, 5)).drain_seconds == 30
    await asyncio.sleep(0.6)
    assert not draining.done()
    pool.actors[DENSE].num_running = 0
    await asyncio.wait_for(draining, 5)


@supervised()
async def test_a_drain_ends_with_its_grace_period(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[DENSE].num_running = 1
    await asyncio.wait_for(supervisor.operate(Drain(grace_seconds=0.1)), 5)
