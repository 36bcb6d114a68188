"""The Ray Serve application.

Serve config files name it as `cluster.app:build`; its args are ClusterConfig's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from cluster.config.cluster_config import ClusterConfig, from_mapping
from cluster.ingress.deployment import Ingress
from cluster.ray_actors.actor_settings import INGRESS_LABEL, LABEL_SHARE

APPLICATION_NAME = "phimoe"

GRPC_SERVICERS = (
    "protos.serving_pb2_grpc.add_ServingServicer_to_server",
    "protos.admin_pb2_grpc.add_AdminServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
"""Values for `grpc_options.grpc_servicer_functions`, which Serve needs to serve gRPC."""

_BEYOND_GRACE_SECONDS = 5.0
"""Time after the grace period in which a replica that Serve replaces ends the requests that are left."""


def build(args: Mapping[str, object]) -> serve.Application:
    """Build the Serve application from `args`. Raises ValueError that names the key for wrong args.

    Its replicas find the supervisor of the running service, or create the supervisor, which creates the
    actors. The listening address stands elsewhere in a Serve config file, so unless `host` is among the args
    the service counts as open to the network.
    """
    return build_from(from_mapping({"host": "0.0.0.0", **args}))


def build_from(config: ClusterConfig, labels: frozenset[str] = frozenset()) -> serve.Application:
    """Build the Serve application from a checked config.

    `labels` are the names of the resources that nodes of the cluster have. If some nodes have the resource
    for ingress replicas, the replicas run there. A Serve config file sets this itself, in the deployment's
    `ray_actor_options`.
    """
    claims = {INGRESS_LABEL: LABEL_SHARE} if INGRESS_LABEL in labels else {}
    deployment: Any = serve.deployment(
        name="Ingress",
        num_replicas=config.ingress_replicas,
        # The service has its own admission, which answers in OpenAI's shape. Serve's limit must be out of its
        # way.
        max_ongoing_requests=2 * config.max_waiting_requests + 64,
        graceful_shutdown_timeout_s=config.drain_grace_seconds + _BEYOND_GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": 0, "resources": claims},
    )(Ingress)
    application: serve.Application = deployment.bind(config.to_mapping())
    return application
