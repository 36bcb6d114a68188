"""Tests the supervisor with actors in this process: it creates, joins and replaces them."""

from __future__ import annotations

import asyncio

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
async def test_a_killed_dense_actor_gets_another_address(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    addresses = await supervisor.addresses(0, 5)
    assert addresses.dense[0].port == pool.actors[DENSE].pid
    pool.actors[DENSE].die()
    gone = await supervisor.addresses(addresses.version, 5)
    assert gone.dense == ()
    back = await supervisor.addresses(gone.version, 5)
    assert back.dense[0].port == pool.actors[DENSE].pid != addresses.dense[0].port


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
async def test_addresses_that_do_not_change_are_returned_after_the_wait(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    addresses = await supervisor.addresses(0, 5)
    assert await supervisor.addresses(addresses.version, 0.05) == addresses


@supervised(**REPLICATED)
async def test_every_expert_has_its_replicas_on_different_actors(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    held = [expert for index in range(3) for expert in pool.expert(index).experts]
    assert sorted(held) == sorted([*range(16), *range(16)])
    assert len((await supervisor.addresses(0, 5)).dense) == 2


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
async def test_an_actor_that_answers_again_before_it_is_killed_lives_on(
    supervisor: Supervisor, pool: LocalPool
) -> None:
    supervisor.start()
    await until_ready(supervisor)
    hung = pool.expert(0)
    pid, hung.replace_seconds, hung.is_stopped = hung.pid, 2.0, True
    await until(lambda: hung.num_begun_to_replace == 1, 3)
    await asyncio.sleep(0.5)
    hung.is_stopped = False
    await until(lambda: len(pool.actors[DENSE].joined[-1].experts) == 3 and hung.epoch > 1)
    await asyncio.sleep(2.0)
    assert (hung.pid, hung.num_begun_to_replace, hung.num_replaced) == (pid, 1, 0)
    await until_all_ready(supervisor)


@supervised(**REPLICATED)
async def test_a_suspected_actor_that_answers_is_left_alone(supervisor: Supervisor, pool: LocalPool) -> None:
    supervisor.start()
    await until_ready(supervisor)
    pool.actors[DENSE].lost_links = ("expert-2",)
    await until(lambda: pool.actors[DENSE].epoch == 2)
    await asyncio.sleep(0.5)
    assert pool.expert(2).num_replaced == 0
