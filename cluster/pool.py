"""The only file that calls Ray core: start or join Ray, create actors, call them with deadlines, watch and kill them.

    placement group "phimoe"     one bundle per actor, spread over the nodes
    phimoe-supervisor            one, outside the group
    phimoe-dense-D               HostedActor with a DenseActor
    phimoe-expert-E              HostedActor with an ExpertActor

All of them are detached, named and restarted without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import uuid
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.errors import ActorError
from actors.messages import ActorReport, Membership
from actors.settings import DenseSettings, ExpertSettings
from cluster.config import ClusterConfig, from_mapping
from cluster.environment import NAMESPACE, limit_threads
from cluster.hosting import CPUS_PER_ACTOR, Fleet, bundle, plan_actors
from cluster.remote import ActorLostError
from cluster.supervisor import Supervisor, actor_name, key_of
from cluster.view import ActorView, ClusterView, Doors, Pulse, Startup
from cluster.waiting import within

SUPERVISOR_NAME = "phimoe-supervisor"
GROUP_NAME = "phimoe"

_OBJECT_STORE_BYTES = 128 * 1024 * 1024
_CALLS_AT_ONCE = 32
"""Threads of a hosted actor that answer calls: joins of several epochs may be waiting while pulses go on."""
_CREATE_SECONDS = 60.0
_GROUP_SECONDS = 60.0

T = TypeVar("T")


def start_ray(config: ClusterConfig) -> str:
    """Join the Ray cluster at `config.address`, or start a local one; its address. Blocks."""
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "error"}
    if config.address is None:
        options |= {
            "address": "local",
            "include_dashboard": config.dashboard,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = config.address
    context: Any = ray.init(**options)
    return str(context.address_info["address"])


def stop_ray() -> None:
    """Leave Ray; a local cluster that this process started ends with it."""
    ray.shutdown()


class HostedActor:
    """The process of one dense or expert actor: what Ray creates around the plain class."""

    def __init__(self, settings: DenseSettings | ExpertSettings) -> None:
        limit_threads(settings.num_threads)
        self._incarnation = uuid.uuid4().hex
        self._node_ip = _node_ip()
        self._end = threading.Event()
        settings = replace(settings, node_ip=self._node_ip)
        # Imported here: only these processes load torch, and each only its own half.
        if isinstance(settings, DenseSettings):
            from actors.dense.actor import DenseActor

            self._actor: Any = DenseActor(settings)
        else:
            from actors.expert.actor import ExpertActor

            self._actor = ExpertActor(settings)

    def pulse(self) -> Pulse:
        """Who is there and how far it is."""
        return Pulse(
            incarnation=self._incarnation,
            pid=os.getpid(),
            node_ip=self._node_ip,
            progress=self._actor.progress(),
        )

    def start_loading(self) -> None:
        """Begin to load; returns at once."""
        self._actor.start_loading()

    def listen(self) -> tuple[str, int, str, int]:
        """Front host and port, store host and port. Only a dense actor listens."""
        host, port, store_host, store_port = self._actor.listen()
        return host, port, store_host, store_port

    def join(self, members: Membership) -> None:
        """Enter an epoch; blocks until its links are up."""
        self._actor.join(members)

    def report(self) -> ActorReport:
        """What the actor says of itself."""
        report: ActorReport = self._actor.report()
        return report

    def wait_for_end(self) -> None:
        """Blocks for as long as the process lives; its death ends the call with an error at the caller."""
        self._end.wait()

    def stop(self) -> None:
        """Close links and sockets; the process stays until it is removed."""
        self._end.set()
        self._actor.stop()


class RayActor:
    """A HostedActor as the supervisor sees it: `supervisor.RemoteActor` over Ray."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle, self._name = handle, name

    async def pulse(self, deadline_seconds: float) -> Pulse:
        return await self._answer(self._handle.pulse.remote(), deadline_seconds)

    async def start_loading(self, deadline_seconds: float) -> None:
        await self._answer(self._handle.start_loading.remote(), deadline_seconds)

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

    async def replace(self) -> None:
        ray.kill(self._handle, no_restart=False)

    async def remove(self) -> None:
        ray.kill(self._handle, no_restart=True)

    async def _answer(self, reference: Awaitable[T], deadline_seconds: float | None) -> T:
        """The call's result. Raises ActorLostError, TimeoutError, or the actor's own error."""
        try:
            return await within(deadline_seconds, _future(reference))
        except RayTaskError as error:
            cause = error.cause
            raise (
                ActorLostError(self._name, str(cause)) if isinstance(cause, ActorError) else error
            ) from error
        except RayError as error:
            raise ActorLostError(self._name, str(error)) from error


class RayPool:
    """The machines of one Ray cluster: `supervisor.ActorPool` over Ray. Lives in the supervisor's process."""

    def __init__(self) -> None:
        self._group: Any = None
        self._bundles: dict[str, int] = {}
        self._num_gpus = 0.0

    async def plan(self, config: ClusterConfig, token: str) -> list[DenseSettings | ExpertSettings]:
        """Choose device and threads for the nodes that are alive, and reserve a place for every actor."""
        fleet = _fleet()
        settings = plan_actors(config, token, fleet, config.num_expert_actors)
        self._num_gpus = config.gpus_per_actor if settings[0].device == "cuda" else 0.0
        self._bundles = {actor_name(key_of(item)): index for index, item in enumerate(settings)}
        self._group = await self._find_or_create_group(
            [bundle(item, config.gpus_per_actor, fleet) for item in settings]
        )
        return settings

    async def find_or_create(self, settings: DenseSettings | ExpertSettings) -> RayActor:
        """The actor of that name, which may be there from before the supervisor's last restart."""
        name = actor_name(key_of(settings))
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "lifetime": "detached",
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "num_cpus": CPUS_PER_ACTOR,
            "num_gpus": self._num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=self._bundles[name]
            ),
        }
        return RayActor(ray.remote(HostedActor).options(**options).remote(settings), name)

    async def release(self) -> None:
        """Give the reserved places back."""
        if self._group is not None:
            remove_placement_group(self._group)

    async def _find_or_create_group(self, bundles: list[dict[str, float]]) -> Any:
        with contextlib.suppress(ValueError):
            return ray.util.get_placement_group(GROUP_NAME)
        group = placement_group(bundles, strategy="SPREAD", name=GROUP_NAME, lifetime="detached")
        try:
            await within(_GROUP_SECONDS, _future(group.ready()))
        except asyncio.TimeoutError:
            remove_placement_group(group)
            raise ActorLostError(GROUP_NAME, f"the cluster has no room for {bundles}") from None
        return group


class HostedSupervisor:
    """The process of the supervisor: an asyncio actor."""

    async def __init__(self, mapping: dict[str, object], token: str) -> None:  # type: ignore[misc]
        config = from_mapping(mapping)
        self._hash = config.actor_hash()
        me = ActorView(
            name=SUPERVISOR_NAME,
            kind="supervisor",
            index=0,
            pid=os.getpid(),
            node_ip=_node_ip(),
            device="cpu",
            state="ready",
            restarts=0,
            experts=(),
            memory_bytes=_resident_bytes(),
        )
        self._supervisor = Supervisor(config, token, RayPool(), me)
        self._supervisor.start()

    async def actor_hash(self) -> str:
        """What the actors were made from."""
        return self._hash

    async def view(self) -> ClusterView:
        """See Supervisor.view."""
        return await self._supervisor.view()

    async def startup(self) -> Startup:
        """See Supervisor.startup."""
        return self._supervisor.startup()

    async def doors(self, known_version: int, wait_seconds: float) -> Doors:
        """See Supervisor.doors."""
        return await self._supervisor.doors(known_version, wait_seconds)

    async def shut_down(self) -> None:
        """See Supervisor.shut_down."""
        await self._supervisor.shut_down()


class SupervisorClient:
    """The supervisor as ingress replicas and the command line see it.

    Every call raises ActorLostError while it is dead or restarting and TimeoutError after its deadline.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def view(self, deadline_seconds: float) -> ClusterView:
        return await self._answer(self._handle.view.remote(), deadline_seconds)

    async def startup(self, deadline_seconds: float) -> Startup:
        return await self._answer(self._handle.startup.remote(), deadline_seconds)

    async def doors(self, known_version: int, wait_seconds: float, deadline_seconds: float) -> Doors:
        return await self._answer(self._handle.doors.remote(known_version, wait_seconds), deadline_seconds)

    async def actor_hash(self, deadline_seconds: float) -> str:
        return await self._answer(self._handle.actor_hash.remote(), deadline_seconds)

    async def remove(self, deadline_seconds: float) -> None:
        """End the service: its actors, their places and the supervisor."""
        with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
            await self._answer(self._handle.shut_down.remote(), deadline_seconds)
        ray.kill(self._handle, no_restart=True)

    async def _answer(self, reference: Awaitable[T], deadline_seconds: float) -> T:
        try:
            return await within(deadline_seconds, _future(reference))
        except RayError as error:
            raise ActorLostError(SUPERVISOR_NAME, str(error)) from error


def find_supervisor() -> SupervisorClient | None:
    """The supervisor of the running service, if there is one."""
    try:
        return SupervisorClient(ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE))
    except ValueError:
        return None


async def ensure_supervisor(config: ClusterConfig) -> SupervisorClient:
    """The supervisor of a service whose actors are as `config` says; one with other actors is removed first."""
    found = find_supervisor()
    if found is not None:
        if await found.actor_hash(_CREATE_SECONDS) == config.actor_hash():
            return found
        await found.remove(_CREATE_SECONDS)
        await _until_gone()
    options = {
        "name": SUPERVISOR_NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 1000,
        "num_cpus": 0,
    }
    handle = (
        ray.remote(HostedSupervisor).options(**options).remote(config.to_mapping(), secrets.token_hex(16))
    )
    return SupervisorClient(handle)


async def _until_gone() -> None:
    """Wait until the names are free again."""
    for _ in range(int(_CREATE_SECONDS / 0.05)):
        names = {item["name"] for item in ray.util.list_named_actors(all_namespaces=True)}
        if not any(name.startswith("phimoe-") for name in names):
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"actors of the former service are still there after {_CREATE_SECONDS:.0f} s")


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


def _node_ip() -> str:
    """The address by which Ray knows this node; a host may have several."""
    node_id = ray.get_runtime_context().get_node_id()
    described: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next(str(node["NodeManagerAddress"]) for node in described if node["NodeID"] == node_id)


def _future(reference: Any) -> asyncio.Future[Any]:
    """An ObjectRef as a future of the running loop."""
    return asyncio.wrap_future(reference.future())


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
