"""Start and end the Serve side of a service: controller, doors, application. Blocking; called on a thread of its own."""

from __future__ import annotations

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from cluster.app import APPLICATION_NAME, GRPC_SERVICERS, build_from
from cluster.config.cluster_config import ClusterConfig


def start_serve(config: ClusterConfig, labels: frozenset[str]) -> None:
    """Start Serve where it is not running yet, with doors on the config's host and ports, and deploy the application.

    `labels`: see `build_from`. Returns when its replicas run. Raises RuntimeError with Serve's reason where they cannot. With
    TLS Serve's own gRPC door, which would speak plain text, stays closed: `cluster.ingress.grpc.tls` opens one.
    """
    serve.start(
        proxy_location=ProxyLocation.HeadOnly if config.address is None else ProxyLocation.EveryNode,
        http_options=HTTPOptions(
            host=config.host,
            port=config.port,
            ssl_keyfile=config.tls_key_file,
            ssl_certfile=config.tls_cert_file,
        ),
        grpc_options=gRPCOptions(
            port=config.grpc_port,
            grpc_servicer_functions=[] if config.has_tls else list(GRPC_SERVICERS),
        ),
    )
    serve.run(build_from(config, labels), name=APPLICATION_NAME, route_prefix="/")


def stop_serve() -> None:
    """Remove the application, and Serve itself where nothing else runs on it."""
    others = [name for name in serve.status().applications if name != APPLICATION_NAME]
    if others:
        serve.delete(APPLICATION_NAME)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call]
