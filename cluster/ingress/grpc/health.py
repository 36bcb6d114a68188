"""The methods of `grpc.health.v1.Health`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from grpc_health.v1 import health_pb2

from cluster.errors import ModelNotFound
from cluster.ingress.grpc.calls import CallContext
from cluster.ingress.service import Service

_WATCH_POLL_SECONDS = 0.5


class HealthMethods:
    """One coroutine or async generator for each method of the proto, under its name.

    Each may raise ClientError.
    """

    def __init__(self, service: Service, service_names: tuple[str, ...]) -> None:
        """`service_names` are the gRPC services that a check may name; "" stands for the whole server."""
        self._service, self._service_names = service, service_names

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Return SERVING if a request would be answered now.

        The status is NOT_FOUND for an unknown service.
        """
        if request.service not in self._service_names:
            raise ModelNotFound(request.service)
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(
        self, request: health_pb2.HealthListRequest, context: CallContext
    ) -> health_pb2.HealthListResponse:
        """Return the status of every service."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._service_names
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Yield the status now and after every change."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            await asyncio.sleep(_WATCH_POLL_SECONDS)

    def _status(self, service_name: str) -> Any:
        if service_name not in self._service_names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._service.is_ready:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING
