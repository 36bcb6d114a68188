"""Tests expert actors that stay away: other actors hold their experts until they are back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.operations.messages import Restart, Scale
from cluster.supervisor.remote_actor import OperationError
from cluster.supervisor.supervisor import Supervisor
from tests.support.local_actors import (
    DENSE,
    EXPERT_0,
    REPLICATED,
    LocalPool,
    kill,
    new_supervisor,
    supervised,
    until,
    until_all_ready,
    until_ready,
)

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
    scaling = asyncio.create_task(supervisor.operate(Scale(expert_actors=2)))
    await until(lambda: pool.expert(1).state == "loading")
    pool.expert(1).leave()
    with pytest.raises(OperationError, match="expert-1 stays away"):
        await asyncio.wait_for(scaling, 10)
    await until_ready(supervisor)
    await until(lambda: counts(pool, 0, 2) == [8, 8])
    await until(lambda: supervisor._operations.current is None)
    with pytest.raises(OperationError, match="expert-1 stays away"):
        await supervisor.operate(Restart())
    await supervisor.operate(Scale(expert_actors=2))
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
    await until(lambda: not gone.is_dead and b'"incarnation":null' in (pool.snapshot or b""))
    await kill(supervisor)
    second = new_supervisor(pool, **REPLICATED)
    try:
        second.start()
        await until(lambda: second.startup().is_ready)
        pool.actors[ActorKey("dense", 1)].die()
        await until(lambda: pool.actors[ActorKey("dense", 1)].epoch > 2)
    finally:
        await kill(second)
