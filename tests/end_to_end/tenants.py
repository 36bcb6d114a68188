"""Takes away a host's room for further actors.

    python -m tests.end_to_end.tenants RAY_ADDRESS take|leave HOST LABEL

An actor that does nothing takes the room. It leaves room for one actor that claims the label, and takes the
room again when the host comes back. A placement group would need no process, but the head of Ray tries to
place a group without a pause while the host is away (`cluster.ray_actors.placement_groups`).
"""

from __future__ import annotations

import sys
from typing import Any

import ray

_WAIT_SECONDS = 60


class Tenant:
    """An actor that claims resources and does nothing."""

    def is_there(self) -> bool:
        """Return when the actor is placed."""
        return True


def main() -> None:
    """Take the room and wait until it is taken, or give it back."""
    address, action, host, label = sys.argv[1:]
    ray.init(address=address, namespace="tenants", log_to_driver=False)
    if action == "leave":
        ray.kill(ray.get_actor(f"{label}-{host}"))
        return
    claims = {f"node:{host}": 0.001, label: 0.999}
    options: Any = ray.remote(Tenant).options(
        name=f"{label}-{host}", lifetime="detached", num_cpus=0, resources=claims, max_restarts=-1
    )
    ray.get(options.remote().is_there.remote(), timeout=_WAIT_SECONDS)


if __name__ == "__main__":
    main()
