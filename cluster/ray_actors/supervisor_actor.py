"""The supervisor's process, and the client through which other processes find, create and call it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.config.cluster_config import ClusterConfig, from_mapping
from cluster.messages import ActorView, ClusterView, DenseAddresses, Startup
from cluster.ray_actors.actors import RayPool, as_future, this_node
from cluster.ray_actors.ray_environment import NAMESPACE
from cluster.supervisor.operations.messages import Operation
from cluster.supervisor.remote_actor import ActorLostError, OperationError
from cluster.supervisor.supervisor import Supervisor
from cluster.timeouts import within

SUPERVISOR_NAME = "phimoe-supervisor"

_CREATE_SECONDS = 60.0

T = TypeVar("T")


class HostedSupervisor:
    """The process of the supervisor, which is an asyncio actor of Ray."""

    async def __init__(self, mapping: dict[str, object], token: str) -> None:  # type: ignore[misc]
        config = from_mapping(mapping)
        self._hash = config.actor_hash()
        me = ActorView(
            name=SUPERVISOR_NAME,
            kind="supervisor",
            index=0,
            pid=os.getpid(),
            node_ip=this_node()[1],
            device="cpu",
            state="ready",
            restarts=0,
            experts=(),
            memory_bytes=_resident_bytes(),
        )
        self._supervisor = Supervisor(config, token, RayPool(), me)
        self._supervisor.start()

    async def actor_hash(self) -> str:
        """Return `ClusterConfig.actor_hash` of the config from which the actors were created."""
        return self._hash

    async def view(self) -> ClusterView:
        """See Supervisor.view."""
        return await self._supervisor.view()

    async def startup(self) -> Startup:
        """See Supervisor.startup."""
        return self._supervisor.startup()

    async def addresses(self, known_version: int, wait_seconds: float) -> DenseAddresses:
        """See Supervisor.addresses."""
        return await self._supervisor.addresses(known_version, wait_seconds)

    async def operate(self, operation: Operation) -> None:
        """See Supervisor.operate."""
        await self._supervisor.operate(operation)

    async def shut_down(self) -> None:
        """See Supervisor.shut_down."""
        await self._supervisor.shut_down()


class SupervisorClient:
    """The supervisor as ingress replicas and commands see it.

    Every call raises ActorLostError while the supervisor is dead or restarting, and TimeoutError after its
    deadline.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def view(self, deadline_seconds: float) -> ClusterView:
        return await self._answer(self._handle.view.remote(), deadline_seconds)

    async def startup(self, deadline_seconds: float) -> Startup:
        return await self._answer(self._handle.startup.remote(), deadline_seconds)

    async def addresses(
        self, known_version: int, wait_seconds: float, deadline_seconds: float
    ) -> DenseAddresses:
        return await self._answer(
            self._handle.addresses.remote(known_version, wait_seconds), deadline_seconds
        )

    async def actor_hash(self, deadline_seconds: float) -> str:
        return await self._answer(self._handle.actor_hash.remote(), deadline_seconds)

    async def operate(self, operation: Operation, deadline_seconds: float) -> None:
        """Also raises ValueError and OperationError.

        After a TimeoutError the operation goes on, as `view` shows.
        """
        await self._answer(self._handle.operate.remote(operation), deadline_seconds)

    async def remove(self, deadline_seconds: float) -> None:
        """End the service: remove its actors, their placement groups and the supervisor."""
        with contextlib.suppress(ActorLostError, asyncio.TimeoutError):
            await self._answer(self._handle.shut_down.remote(), deadline_seconds)
        ray.kill(self._handle, no_restart=True)

    async def _answer(self, reference: Awaitable[T], deadline_seconds: float) -> T:
        try:
            return await within(deadline_seconds, as_future(reference))
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, ValueError | OperationError):
                raise cause from error
            raise ActorLostError(SUPERVISOR_NAME, str(error)) from error


def find_supervisor() -> SupervisorClient | None:
    """Return the supervisor of the running service, or None."""
    try:
        return SupervisorClient(ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE))
    except ValueError:
        return None


async def ensure_supervisor(config: ClusterConfig) -> SupervisorClient:
    """Find or create the supervisor for `config`. A running service with other actors is removed first."""
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
    """Wait until no actor of the service is left. Raises TimeoutError."""
    for _ in range(int(_CREATE_SECONDS / 0.05)):
        names = {item["name"] for item in ray.util.list_named_actors(all_namespaces=True)}
        if not any(name.startswith("phimoe-") for name in names):
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"actors of the former service are still there after {_CREATE_SECONDS:.0f} s")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
