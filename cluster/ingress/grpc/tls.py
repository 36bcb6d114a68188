"""gRPC with TLS: a grpc.aio server in each ingress replica.

Ray Serve's gRPC proxy has no TLS (it calls add_insecure_port). There are two other ways to add it. HAProxy
would have to run with a configuration other than the one that Serve writes again whenever replicas change. A
sidecar is one more process whose certificates, limits and health must be managed, and a laptop has none. A
server in the replica adds nothing that can fail on its own, needs no hop through a proxy, and has the same
methods, limits and statuses.

The replicas of a host share the port (SO_REUSEPORT), and the kernel spreads connections over them. A client
that wants its calls spread as well opens several connections. A replica that ends takes no new calls and
gives running calls its grace period. The files are read at the start, so a new certificate needs new
replicas.
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
    """Start a server on the config's host and grpc_tls_port.

    Raises OSError or RuntimeError if it cannot start.
    """
    credentials = grpc.ssl_server_credentials(
        [(Path(config.tls_key_file or "").read_bytes(), Path(config.tls_cert_file or "").read_bytes())]
    )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.server_handshake_timeout_ms", 1000 * config.header_timeout_seconds),
        ],
        # The service itself refuses calls, with a clear error. This only bounds the calls that wait to be
        # refused.
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
    """Add every service, and reflection, to a server. Serve's own gRPC proxy has the same services."""
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
