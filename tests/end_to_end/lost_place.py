"""The node of an expert actor dies, no other node has room, and then a new node comes.

    python -m tests.end_to_end.lost_place FILE

There are two raylets on this host, and the pool of actors that the supervisor uses. What was seen is written
to FILE as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.ray_actors import placement_groups
from cluster.ray_actors.actors import RayPool
from cluster.ray_actors.ray_environment import NAMESPACE, prepare_ray
from cluster.supervisor.membership.registry import key_of
from cluster.supervisor.remote_actor import UNANSWERED, ActorDeadError, ActorLostError, RemoteActor
from tests.end_to_end.tenants import Tenant

NAME = "phimoe-expert-0"
_EXPERT: dict[str, Any] = {"num_cpus": 1, "resources": {"phimoe_expert": 1}}
_WAIT_SECONDS = 60.0
_SHORT_SECONDS = 2.0


def main() -> None:
    """Run the scenario and write what was seen."""
    prepare_ray(use_haproxy=False, scratch=None)
    head = {"num_cpus": 1, "resources": {"phimoe_dense": 1, "phimoe_expert": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        tenant: Any = ray.remote(Tenant).options(num_cpus=0, resources={"phimoe_expert": 0.9995})
        there = tenant.remote()
        ray.get(there.is_there.remote(), timeout=_WAIT_SECONDS)
        seen = asyncio.run(_lose_and_find(cluster))
        Path(sys.argv[1]).write_text(json.dumps(seen), encoding="utf-8")
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


async def _lose_and_find(cluster: Cluster) -> dict[str, Any]:
    node = cluster.add_node(**_EXPERT)
    pool = RayPool()
    settings = await pool.plan(ClusterConfig(expert_actors=1, dtype="float32"), "token", 1, "cpu")
    expert = next(item for item in settings if key_of(item).kind == "expert")
    actor = await pool.find_or_create(expert)
    first = await actor.heartbeat(_WAIT_SECONDS)
    cluster.remove_node(node, allow_graceful=False)
    await _until(lambda: _state() == "RESCHEDULING")
    seen: dict[str, Any] = {"busy_before": await _share_of_head()}
    await pool.maintain()
    seen["given_up"] = [_state(), await _is_dead(actor)]
    try:
        await pool.find_or_create(expert)
    except ActorLostError as error:
        seen["error"] = str(error)
    seen["busy_after"] = await _share_of_head()
    waiting = asyncio.ensure_future(_first_heartbeat(pool, expert))
    await asyncio.sleep(0.1)
    cluster.add_node(**_EXPERT)
    seen["is_back"] = await waiting != first.incarnation
    await pool.maintain()
    seen["at_last"] = _state()
    await pool.release()
    seen["left"] = _state()
    return seen


async def _first_heartbeat(pool: RayPool, settings: DenseSettings | ExpertSettings) -> str:
    actor = await pool.find_or_create(settings)
    return (await actor.heartbeat(_WAIT_SECONDS)).incarnation


async def _is_dead(actor: RemoteActor) -> bool:
    """Whether the supervisor learns that Ray will not restart the actor."""
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        try:
            await actor.heartbeat(_SHORT_SECONDS)
        except ActorDeadError:
            return True
        except UNANSWERED:
            pass
        await asyncio.sleep(0.1)
    return False


async def _until(condition: Any) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(_state())
        await asyncio.sleep(0.1)


async def _share_of_head() -> float:
    """Return the share of one core that the head's process (GCS) uses."""
    (head,) = (process for process in psutil.Process().children() if "gcs_server" in process.name())
    before, began = head.cpu_times(), time.monotonic()
    await asyncio.sleep(_SHORT_SECONDS)
    after, seconds = head.cpu_times(), time.monotonic() - began
    return float(after.user + after.system - before.user - before.system) / seconds


def _state() -> str:
    return next((str(item["state"]) for item in placement_groups._live() if item["name"] == NAME), "")


if __name__ == "__main__":
    main()
