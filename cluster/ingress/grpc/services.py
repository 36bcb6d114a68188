"""The gRPC services and their methods, as the service descriptors of the protos name them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.ingress.admin import Admin
from cluster.ingress.auth import Access
from cluster.ingress.grpc.admin import AdminMethods
from cluster.ingress.grpc.calls import CallContext, Calls
from cluster.ingress.grpc.health import HealthMethods
from cluster.ingress.grpc.serving import ServingMethods
from cluster.ingress.service import Service
from protos import admin_pb2, admin_pb2_grpc, serving_pb2, serving_pb2_grpc

UnaryMethod: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""A method that takes a request and a context and returns a response."""
StreamMethod: TypeAlias = Callable[[Any, Any], AsyncGenerator[Any, None]]
"""A method that takes a request and a context and yields responses."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpcService:
    """One service of the protos."""

    descriptor: ServiceDescriptor
    access: Access
    """Who may call the service's methods."""
    add_to_server: Callable[[Any, grpc.aio.Server], None]
    """Registers an object that has the service's methods under their names with a server."""


SERVING = GrpcService(
    descriptor=serving_pb2.DESCRIPTOR.services_by_name["Serving"],
    access=Access.CLIENT,
    add_to_server=serving_pb2_grpc.add_ServingServicer_to_server,
)
ADMIN = GrpcService(
    descriptor=admin_pb2.DESCRIPTOR.services_by_name["Admin"],
    access=Access.ADMIN,
    add_to_server=admin_pb2_grpc.add_AdminServicer_to_server,
)
HEALTH = GrpcService(
    descriptor=health_pb2.DESCRIPTOR.services_by_name["Health"],
    access=Access.PUBLIC,
    add_to_server=health_pb2_grpc.add_HealthServicer_to_server,
)
SERVICES = (SERVING, ADMIN, HEALTH)


class GrpcMethods:
    """All gRPC methods of one ingress replica by name.

    Names must be unique across services, since Serve looks methods up by name alone. Each method first admits
    the call. An error in the method becomes a ClientError and sets the call's status.
    """

    def __init__(self, service: Service, calls: Calls) -> None:
        self._calls = calls
        self.unary: dict[str, UnaryMethod] = {}
        """Methods with one response."""
        self.streams: dict[str, StreamMethod] = {}
        """Methods with a stream of responses."""
        self._add(SERVING, ServingMethods(service))
        self._add(ADMIN, AdminMethods(Admin(service)))
        named = (SERVING.descriptor.full_name, ADMIN.descriptor.full_name)
        self._add(HEALTH, HealthMethods(service, ("", *named)))

    def _add(self, service: GrpcService, methods: object) -> None:
        for descriptor in service.descriptor.methods:
            assert descriptor.name not in self.unary and descriptor.name not in self.streams
            method = getattr(methods, descriptor.name)
            if descriptor.server_streaming:
                self.streams[descriptor.name] = self._admitted_stream(method, service.access)
            else:
                self.unary[descriptor.name] = self._admitted_unary(method, service.access)

    def _admitted_unary(self, method: UnaryMethod, access: Access) -> UnaryMethod:
        async def call(request: Any, context: CallContext) -> Any:
            with self._calls.admitted(request, context, access):
                return await method(request, context)

        return call

    def _admitted_stream(self, method: StreamMethod, access: Access) -> StreamMethod:
        async def call(request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
            with self._calls.admitted(request, context, access):
                async with contextlib.aclosing(method(request, context)) as responses:
                    async for response in responses:
                        yield response

        return call


def forwards_grpc(deployment: type[T]) -> type[T]:
    """Add every gRPC method to a class, under the name by which Serve looks it up. This is a class decorator.

    The added methods call the `GrpcMethods` in the instance's attribute `grpc`.
    """
    for service in SERVICES:
        for descriptor in service.descriptor.methods:
            make = _stream_forwarder if descriptor.server_streaming else _unary_forwarder
            setattr(deployment, descriptor.name, make(descriptor.name))
    return deployment


def _unary_forwarder(name: str) -> Callable[..., Awaitable[Any]]:
    # Serve passes the context by the name of the parameter.
    async def forward(self: Any, request: Any, grpc_context: Any) -> Any:
        return await self.grpc.unary[name](request, grpc_context)

    return forward


def _stream_forwarder(name: str) -> Callable[..., AsyncGenerator[Any, None]]:
    async def forward(self: Any, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self.grpc.streams[name](request, grpc_context):
            yield response

    return forward
