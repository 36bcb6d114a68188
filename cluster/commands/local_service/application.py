"""Starts and stops the Serve side of a service: controller, proxies and application.

The functions block; call them in a thread.
"""

from __future__ import annotations

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from cluster.app import APPLICATION_NAME, GRPC_SERVICERS, build_from
from cluster.config.cluster_config import ClusterConfig


def start_serve(config: ClusterConfig, labels: frozenset[str]) -> None:
    """Start Serve on the config's host and ports, if it is not running yet, and deploy the application.

    `build_from` explains `labels`. The function returns when the replicas run. Raises RuntimeError with
    Serve's reason if they cannot. Serve's own gRPC server cannot speak TLS, so with TLS it stays off and
    `cluster.ingress.grpc.tls` starts another.
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
    """Remove the application, and Serve itself if no other application runs on it."""
    others = [name for name in serve.status().applications if name != APPLICATION_NAME]
    if others:
        serve.delete(APPLICATION_NAME)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call]
