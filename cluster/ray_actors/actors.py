"""Runs dense and expert actors as Ray actors: creates, calls (with deadlines), watches and kills them.

    phimoe-dense-D     HostedActor with a DenseActor, in a placement group of the same name
    phimoe-expert-E    HostedActor with an ExpertActor, in a placement group of the same name

All of them are detached, named, and restarted without limit. Calls that need Ray's head (GCS) run in threads,
since they block while the head is down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.errors import ActorError
from actors.protocol.messages import ActorReport, Membership
from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.messages import Heartbeat
from cluster.process import kill_process, process_start
from cluster.ray_actors import placement_groups
from cluster.ray_actors.actor_settings import CPUS_PER_ACTOR, Fleet, bundle, plan_actors
from cluster.ray_actors.ray_environment import NAMESPACE, limit_threads
from cluster.supervisor.membership.registry import actor_name, key_of
from cluster.supervisor.remote_actor import ActorDeadError, ActorLostError
from cluster.timeouts import within

logger = logging.getLogger(__name__)

_SNAPSHOT_KEY = "snapshot"
_CALLS_AT_ONCE = 32
"""Threads of a hosted actor that answer calls. Joins of several epochs may wait while heartbeats are
answered."""
_HEAD_SECONDS = 30.0
"""Longest wait for an answer of Ray's head, which may be restarting."""
_GROUP_SECONDS = 60.0
_NUM_CHECKS, _CHECK_SECONDS = 20, 0.25
"""How often, and at which interval, a placement group is checked for a node before the lack of one is
reported."""

T = TypeVar("T")


class HostedActor:
    """The process of one dense or expert actor. Ray creates this class, which holds the plain actor."""

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        limit_threads(settings.num_threads)
        self._node_id, self._node_ip = this_node()
        self._started = process_start(os.getpid()) or ""
        self._end = threading.Event()
        settings = replace(settings, node_ip=self._node_ip)
        # These imports load torch, so they are here: only actors' processes load it, each only with its own
        # package.
        if isinstance(settings, DenseSettings):
            from actors.dense.actor import DenseActor

            self._actor: Any = DenseActor(settings)
        else:
            from actors.expert.actor import ExpertActor

            self._actor = ExpertActor(settings)

    def heartbeat(self) -> Heartbeat:
        """Return the identity of the process and its loading progress."""
        return Heartbeat(
            incarnation=self._actor.incarnation,
            pid=os.getpid(),
            node_ip=self._node_ip,
            progress=self._actor.progress(),
            node_id=self._node_id,
            started=self._started,
        )

    def start_loading(self, experts: tuple[int, ...] | None) -> None:
        """Begin to load the weights, with these experts or with None those of the settings.

        Return at once.
        """
        if experts is None:
            self._actor.start_loading()
        else:
            self._actor.start_loading(experts)

    def hold(self, experts: tuple[int, ...]) -> None:
        """Begin to load these further experts, and return at once. Only expert actors have this call."""
        self._actor.hold(experts)

    def drop(self, experts: tuple[int, ...]) -> None:
        """Free these experts. Only expert actors have this call."""
        self._actor.drop(experts)

    def listen(self) -> tuple[str, int, str, int]:
        """Return host and port for ingress replicas, then host and port of the store.

        Only dense actors listen.
        """
        host, port, store_host, store_port = self._actor.listen()
        return host, port, store_host, store_port

    def join(self, members: Membership) -> None:
        """Enter an epoch, and block until its links are up."""
        self._actor.join(members)

    def report(self) -> ActorReport:
        """Return the actor's report on itself."""
        report: ActorReport = self._actor.report()
        return report

    def wait_for_end(self) -> None:
        """Block for as long as the process lives. Its death ends the call with an error at the caller."""
        self._end.wait()

    def stop(self) -> None:
        """Close links and sockets. The process stays until it is removed."""
        self._end.set()
        self._actor.stop()


class RayActor:
    """A HostedActor as the supervisor sees it: `remote_actor.RemoteActor` over Ray."""

    def __init__(self, handle: Any, name: str, node_id: str) -> None:
        self._handle, self._name, self._node_id = handle, name, node_id
        self._heartbeat: Heartbeat | None = None

    async def heartbeat(self, deadline_seconds: float) -> Heartbeat:
        heartbeat: Heartbeat = await self._answer(self._handle.heartbeat.remote(), deadline_seconds)
        self._heartbeat = heartbeat
        return heartbeat

    async def start_loading(self, experts: tuple[int, ...] | None, deadline_seconds: float) -> None:
        await self._answer(self._handle.start_loading.remote(experts), deadline_seconds)

    async def hold(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        await self._answer(self._handle.hold.remote(experts), deadline_seconds)

    async def drop(self, experts: tuple[int, ...], deadline_seconds: float) -> None:
        await self._answer(self._handle.drop.remote(experts), deadline_seconds)

    async def listen(self, deadline_seconds: float) -> tuple[str, int, str, int]:
        return await self._answer(self._handle.listen.remote(), deadline_seconds)

    async def join(self, members: Membership, deadline_seconds: float) -> None:
        await self._answer(self._handle.join.remote(members), deadline_seconds)

    async def report(self, deadline_seconds: float) -> ActorReport:
        return await self._answer(self._handle.report.remote(), deadline_seconds)

    async def wait_for_end(self) -> None:
        await self._answer(self._handle.wait_for_end.remote(), None)

    async def stop(self, deadline_seconds: float) -> None:
        await self._answer(self._handle.stop.remote(), deadline_seconds)

    async def replace(self, heartbeat: Heartbeat | None, deadline_seconds: float) -> None:
        """Send a signal on the process's own node, since Ray's kill waits for an answer of the process."""
        if heartbeat is None:
            await _in_thread(lambda: ray.kill(self._handle, no_restart=False), deadline_seconds)
        elif heartbeat.node_id == self._node_id:
            kill_process(heartbeat.pid, heartbeat.started)
        else:
            where = NodeAffinitySchedulingStrategy(heartbeat.node_id, soft=False)
            task: Any = ray.remote(kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
            reference = task.remote(heartbeat.pid, heartbeat.started)
            try:
                await self._answer(reference, deadline_seconds)
            except (asyncio.TimeoutError, asyncio.CancelledError):
                # The task must not kill the process later, when the node can be reached again and the process
                # works.
                ray.cancel(reference, force=True)
                raise

    async def remove(self) -> None:
        ray.kill(self._handle, no_restart=True)
        if self._heartbeat is not None and self._heartbeat.node_id == self._node_id:
            kill_process(self._heartbeat.pid, self._heartbeat.started)

    async def _answer(self, reference: Awaitable[T], deadline_seconds: float | None) -> T:
        """Return the call's result. Raises ActorLostError, TimeoutError, or the actor's own ActorError."""
        try:
            return await within(deadline_seconds, as_future(reference))
        except RayTaskError as error:
            cause = error.cause
            raise (
                cause if isinstance(cause, ActorError) else ActorLostError(self._name, str(cause))
            ) from error
        except ActorDiedError as error:
            raise ActorDeadError(self._name, str(error)) from error
        except RayError as error:
            raise ActorLostError(self._name, str(error)) from error


class RayPool:
    """The machines of one Ray cluster: `remote_actor.ActorPool` over Ray, in the supervisor's process."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        """Names of the actors that have a placement group."""
        self._gpus_per_actor = 0.0
        self._node_id, _ = this_node()

    async def plan(
        self, config: ClusterConfig, token: str, num_experts: int, device: str | None
    ) -> list[DenseSettings | ExpertSettings]:
        """Choose device and threads for the nodes that are alive, and create the actors' placement groups."""
        fleet = await _in_thread(_fleet, _HEAD_SECONDS)
        settings = plan_actors(config, token, fleet, num_experts, device)
        self._gpus_per_actor = config.gpus_per_actor if settings[0].device == "cuda" else 0.0
        bundles = {actor_name(key_of(item)): bundle(item, config.gpus_per_actor, fleet) for item in settings}
        self._names = set(bundles)
        await _in_thread(
            lambda: placement_groups.reserve(bundles, _GROUP_SECONDS), _GROUP_SECONDS + _HEAD_SECONDS
        )
        return settings

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> RayActor:
        """Return the actor of that name, which may be older than the supervisor's process, or create it."""
        name = actor_name(key_of(settings))
        group = await self._place_of(name)
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "lifetime": "detached",
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "num_cpus": CPUS_PER_ACTOR,
            "num_gpus": self._gpus_per_actor,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=0
            ),
        }
        try:
            handle = await _in_thread(
                lambda: ray.remote(HostedActor).options(**options).remote(settings), _HEAD_SECONDS
            )
        except ValueError as error:
            # An actor that is being removed still has the name.
            raise ActorLostError(name, str(error)) from error
        return RayActor(handle, name, self._node_id)

    async def _place_of(self, name: str) -> Any:
        """Wait until the actor's placement group has a node, and return it.

        Raises ActorLostError after some time.
        """
        for _ in range(_NUM_CHECKS):
            group = await _in_thread(lambda: placement_groups.find_placed(name), _HEAD_SECONDS)
            if group is not None:
                return group
            await asyncio.sleep(_CHECK_SECONDS)
        raise ActorLostError(name, "the cluster has no room for it now")

    async def maintain(self) -> None:
        lost = await _in_thread(placement_groups.unplaced, _HEAD_SECONDS)
        for name in sorted(lost.keys() & self._names):
            logger.warning("%s has lost its node and is placed again", name)
            # The new group claims the same as the old group. `plan` would not see the labels of nodes that
            # are gone.
            await _in_thread(partial(placement_groups.place_again, name, lost[name]), _HEAD_SECONDS)

    async def give_back(self, settings: DenseSettings | ExpertSettings) -> None:
        name = actor_name(key_of(settings))
        self._names.discard(name)
        await _in_thread(lambda: placement_groups.remove(name), _HEAD_SECONDS)

    async def release(self) -> None:
        """Remove all placement groups, and delete the snapshot."""
        await _in_thread(placement_groups.remove_all, _HEAD_SECONDS)
        await _in_thread(
            lambda: internal_kv._internal_kv_del(_SNAPSHOT_KEY, namespace=NAMESPACE), _HEAD_SECONDS
        )

    async def save(self, snapshot: bytes) -> None:
        """Store the snapshot in the head's key-value store, which outlives every actor.

        It also outlives a restart of the head if the head keeps its state.
        """
        await _in_thread(
            lambda: internal_kv._internal_kv_put(
                _SNAPSHOT_KEY, snapshot, overwrite=True, namespace=NAMESPACE
            ),
            _HEAD_SECONDS,
        )

    async def load(self) -> bytes | None:
        """Return the snapshot that was saved last, or None."""
        found: bytes | None = await _in_thread(
            lambda: internal_kv._internal_kv_get(_SNAPSHOT_KEY, namespace=NAMESPACE), _HEAD_SECONDS
        )
        return found


def this_node() -> tuple[str, str]:
    """Return Ray's id of this node, and the address by which Ray knows the node; a host may have several."""
    node_id = ray.get_runtime_context().get_node_id()
    described: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return node_id, next(str(node["NodeManagerAddress"]) for node in described if node["NodeID"] == node_id)


def as_future(reference: Any) -> asyncio.Future[Any]:
    """Return an ObjectRef as a future of the running loop."""
    return asyncio.wrap_future(reference.future())


async def _in_thread(call: Callable[[], T], deadline_seconds: float) -> T:
    """Make a blocking call of Ray in a thread.

    Raises ActorLostError if Ray's head fails, and TimeoutError.
    """
    try:
        return await within(deadline_seconds, asyncio.to_thread(call))
    except RayError as error:
        raise ActorLostError("the head of the Ray cluster", str(error)) from error


def _fleet() -> Fleet:
    described: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in described if node["Alive"]]
    cores = [int(resources["CPU"]) for resources in nodes if resources.get("CPU", 0) >= 1]
    gpus = sum(resources.get("GPU", 0.0) for resources in nodes)
    return Fleet(
        num_nodes=max(1, len(cores)),
        cores_per_node=min(cores, default=1),
        num_gpus=gpus,
        labels=frozenset(name for resources in nodes for name in resources),
    )
