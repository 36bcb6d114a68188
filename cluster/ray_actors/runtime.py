"""Starts or joins Ray, and leaves it.

`ray_environment.prepare_ray` must have been called before the import.
"""

from __future__ import annotations

from typing import Any

import ray

from cluster.config.cluster_config import ClusterConfig
from cluster.ray_actors.ray_environment import NAMESPACE

_OBJECT_STORE_BYTES = 128 * 1024 * 1024


def start_ray(config: ClusterConfig) -> None:
    """Join the Ray cluster at `config.address`, or start a local one. Blocks."""
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "error"}
    if config.address is None:
        options |= {
            "address": "local",
            "include_dashboard": config.dashboard,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = config.address
    ray.init(**options)


def stop_ray() -> None:
    """Leave Ray. A local cluster that this process started then ends."""
    ray.shutdown()


def node_labels() -> frozenset[str]:
    """Return the names of all resources that some node has, custom resources included. Blocks."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return frozenset(resources)
