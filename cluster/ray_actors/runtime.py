"""Starts or joins Ray, and leaves it. `cluster.ray_actors.ray_environment` has to be prepared before."""

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
    """Leave Ray; a local cluster that this process started ends with it."""
    ray.shutdown()


def node_labels() -> frozenset[str]:
    """Names of all resources that some node has, custom ones included. Blocks."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return frozenset(resources)
