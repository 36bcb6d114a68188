"""`cluster.app:build`, the import path for Serve config files; its args are the keys of ClusterConfig."""

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
"""What Serve's gRPC door must be told: `grpc_options.grpc_servicer_functions` of a Serve config file."""

_BEYOND_GRACE_SECONDS = 5.0
"""A replica that Serve replaces gets the grace period, and this to end what is left."""


def build(args: Mapping[str, object]) -> serve.Application:
    """The Serve application. Raises ValueError that names the key for wrong args.

    Its replicas find the supervisor of the running service, or create it with its actors. Where its doors listen is said
    elsewhere in a Serve config file; unless `host` is among the args they count as open to everybody.
    """
    return build_from(from_mapping({"host": "0.0.0.0", **args}))


def build_from(config: ClusterConfig, labels: frozenset[str] = frozenset()) -> serve.Application:
    """The Serve application of a config that is already checked.

    `labels` are the resources that nodes of the cluster have: where some are meant for ingress replicas, those run there. A
    Serve config file says so itself, in the `ray_actor_options` of the deployment.
    """
    claims = {INGRESS_LABEL: LABEL_SHARE} if INGRESS_LABEL in labels else {}
    deployment: Any = serve.deployment(
        name="Ingress",
        num_replicas=config.ingress_replicas,
        # Admission is the service's own, with answers in OpenAI's shape; Serve's limit only has to be out of its way.
        max_ongoing_requests=2 * config.max_waiting_requests + 64,
        graceful_shutdown_timeout_s=config.drain_grace_seconds + _BEYOND_GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": 0, "resources": claims},
    )(Ingress)
    application: serve.Application = deployment.bind(config.to_mapping())
    return application
