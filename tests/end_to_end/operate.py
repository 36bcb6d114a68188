"""Asks the supervisor of a running service for an operation: `python -m ... ADDRESS OPERATION [NUMBER]`."""

from __future__ import annotations

import asyncio
import sys

from cluster.config.cluster_config import ClusterConfig
from cluster.ray_actors.ray_environment import prepare_ray
from cluster.supervisor.operations.messages import OPERATIONS
from tests.end_to_end.running import Running

SECONDS = 120.0


def head_address(service: Running) -> str:
    """Return the address of a service's Ray cluster."""
    for process in service.descendants():
        for argument in process.cmdline() if process.is_running() else []:
            if argument.startswith("--gcs-address="):
                return str(argument).partition("=")[2]
    raise AssertionError("the service has no raylet")


def command(service: Running, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.end_to_end.operate", head_address(service), *arguments]


async def main(address: str, operation: str, *numbers: str) -> None:
    prepare_ray(use_haproxy=False, scratch=None)
    from cluster.ray_actors.runtime import start_ray, stop_ray
    from cluster.ray_actors.supervisor_actor import find_supervisor

    start_ray(ClusterConfig(address=address))
    supervisor = find_supervisor()
    assert supervisor is not None
    (kind,) = [kind for kind in OPERATIONS if kind.name() == operation]
    fields = zip(kind.__struct_fields__, map(int, numbers), strict=True)
    await supervisor.operate(kind(**dict(fields)), SECONDS)
    stop_ray()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
