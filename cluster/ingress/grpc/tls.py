"""gRPC with TLS: a grpc.aio server within each ingress replica.

Ray Serve's gRPC proxy knows no TLS (it calls add_insecure_port). Of the ways around that, HAProxy would have to be started with a
configuration other than the one that Serve writes anew whenever replicas change, and a sidecar is one more process whose certificates,
limits and health somebody has to look after, and which a laptop has not. A server in the replica adds nothing that can
die by itself, takes the hop through the proxy away, and answers with the very same methods, limits and statuses.

Replicas of one host share the port (SO_REUSEPORT); the kernel spreads connections over them. A client that wants its calls spread
as well opens several connections. A replica that ends takes no new calls and gives running ones its grace period. The files are
read at the start; a new certificate wants new replicas.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from cluster.config.cluster_config import ClusterConfig
from cluster.errors import ClientError
from cluster.ingress.grpc.calls import status_code
from cluster.ingress.grpc.services import SERVICES, GrpcMethods, StreamMethod, UnaryMethod


async def start_tls_server(config: ClusterConfig, methods: GrpcMethods) -> grpc.aio.Server:
    """A running server on the config's host and grpc_tls_port. Raises OSError or RuntimeError where it cannot be."""
    credentials = grpc.ssl_server_credentials(
        [(Path(config.tls_key_file or "").read_bytes(), Path(config.tls_cert_file or "").read_bytes())]
    )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.server_handshake_timeout_ms", 1000 * config.header_timeout_seconds),
        ],
        # Admission is the service's own, with clear answers; this only bounds what waits for them.
        maximum_concurrent_rpcs=2 * config.max_waiting_requests + 64,
    )
    add_services(server, methods)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.grpc_tls_port}"
    if server.add_secure_port(address, credentials) == 0:
        raise OSError(f"grpc_tls_port is {config.grpc_tls_port}, which cannot be used on {config.host}")
    await server.start()
    return server


def add_services(server: grpc.aio.Server, methods: GrpcMethods) -> None:
    """Add every service and reflection, as Serve's own gRPC proxy has them."""
    aborting: dict[str, UnaryMethod | StreamMethod] = {
        **{name: _unary(method) for name, method in methods.unary.items()},
        **{name: _stream(method) for name, method in methods.streams.items()},
    }
    for service in SERVICES:
        names = [descriptor.name for descriptor in service.descriptor.methods]
        service.add_to_server(SimpleNamespace(**{name: aborting[name] for name in names}), server)
    full_names = [service.descriptor.full_name for service in SERVICES]
    reflection.enable_server_reflection((*full_names, reflection.SERVICE_NAME), server)


def _unary(method: UnaryMethod) -> UnaryMethod:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except ClientError as error:
            await context.abort(status_code(error), str(error))

    return call


def _stream(method: StreamMethod) -> StreamMethod:
    async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        try:
            async with contextlib.aclosing(method(request, context)) as responses:
                async for response in responses:
                    yield response
        except ClientError as error:
            await context.abort(status_code(error), str(error))

    return call
