"""Tests a supervisor that follows an earlier one, or whose head is down."""

from __future__ import annotations

import asyncio
import json

from cluster.supervisor.membership.membership import ActorKey
from cluster.supervisor.operations.messages import Scale
from cluster.supervisor.supervisor import Supervisor
from tests.support.local_actors import (
    DENSE,
    EXPERT_0,
    REPLICATED,
    LocalPool,
    kill,
    new_supervisor,
    restarts,
    supervised,
    until,
    until_all_ready,
    until_ready,
)


@supervised(**REPLICATED)
async def test_a_new_supervisor_finds_everything_as_it_was(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    await supervisor.operate(Scale(expert_actors=4))
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
    scaling = asyncio.create_task(supervisor.operate(Scale(expert_actors=1)))
    await until(lambda: pool.expert(0).state == "loading")
    assert json.loads(pool.snapshot or b"")["target"]["version"] == 2
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
    await until(lambda: pool.snapshot is not None)


@supervised()
async def test_epochs_go_on_above_what_an_actor_has_seen(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until(lambda: EXPERT_0 in pool.actors)
    pool.actors[EXPERT_0].epoch = 41
    await until_ready(supervisor)
    assert (await supervisor.view()).epoch > 41
