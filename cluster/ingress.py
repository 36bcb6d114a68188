"""The Serve deployment: HTTP and gRPC come in here; each replica is one `Service`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray import serve

from cluster.config import from_mapping
from cluster.grpc_methods import GrpcMethods
from cluster.http_routes import http_app
from cluster.service import Service, SupervisorLink


@serve.ingress()
class Ingress:
    """Method names in capitals are the gRPC methods that Serve looks up by name."""

    async def __init__(self, mapping: Mapping[str, object]) -> None:  # type: ignore[misc]
        self._service = Service(from_mapping(mapping), self._find_supervisor)
        self._grpc = GrpcMethods(self._service)
        self._service.start()

    async def _find_supervisor(self) -> SupervisorLink:
        """The running supervisor, or a new one: a Serve config file starts the service without `phimoe serve`."""
        from cluster.pool import ensure_supervisor

        return await ensure_supervisor(self._service.config)

    async def __serve_build_asgi_app__(self) -> Any:
        return http_app(self._service)

    async def Generate(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self._grpc.generate(request, grpc_context):
            yield response

    async def Chat(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self._grpc.chat(request, grpc_context):
            yield response

    async def Tokenize(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.tokenize(request, grpc_context)

    async def Detokenize(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.detokenize(request, grpc_context)

    async def ModelInfo(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.model_info(request, grpc_context)

    async def Check(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.check(request, grpc_context)

    async def Watch(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self._grpc.watch(request, grpc_context):
            yield response
