"""The Serve deployment: HTTP and gRPC come in here; each replica is one `Service`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray import serve

from cluster.config.cluster_config import from_mapping
from cluster.ingress.admin import Admin
from cluster.ingress.auth import make_doorkeeper
from cluster.ingress.grpc.admin import GrpcAdmin
from cluster.ingress.grpc.calls import Calls
from cluster.ingress.grpc.serving import GrpcMethods
from cluster.ingress.grpc.tls import start_tls_server
from cluster.ingress.http.routes import http_app
from cluster.ingress.service import Service
from cluster.ingress.supervisor_follower import SupervisorLink


@serve.ingress()
class Ingress:
    """Method names in capitals are the gRPC methods that Serve looks up by name."""

    async def __init__(self, mapping: Mapping[str, object]) -> None:  # type: ignore[misc]
        config = from_mapping(mapping)
        self._service = Service(config, self._find_supervisor)
        self._doorkeeper = make_doorkeeper(config)
        calls = Calls(self._doorkeeper, config.max_body_bytes)
        self._grpc = GrpcMethods(self._service, calls)
        self._grpc_admin = GrpcAdmin(Admin(self._service), calls)
        self._tls_server = (
            await start_tls_server(config, self._grpc, self._grpc_admin) if config.has_tls else None
        )
        self._service.start()

    async def __del__(self) -> None:
        """Serve calls this when the replica's own requests have ended, and waits for it."""
        if self._tls_server is not None:
            await self._tls_server.stop(self._service.config.drain_grace_seconds)

    async def _find_supervisor(self) -> SupervisorLink:
        """The running supervisor, or a new one: a Serve config file starts the service without `phimoe serve`."""
        from cluster.ray_actors.supervisor_actor import ensure_supervisor

        return await ensure_supervisor(self._service.config)

    async def __serve_build_asgi_app__(self) -> Any:
        return http_app(self._service, self._doorkeeper)

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

    async def List(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.list(request, grpc_context)

    async def Watch(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self._grpc.watch(request, grpc_context):
            yield response

    async def Status(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc_admin.status(request, grpc_context)

    async def WatchStatus(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any, None]:
        async for response in self._grpc_admin.watch_status(request, grpc_context):
            yield response

    async def Drain(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc_admin.drain(request, grpc_context)

    async def Rebalance(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc_admin.rebalance(request, grpc_context)

    async def Scale(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc_admin.scale(request, grpc_context)

    async def Restart(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc_admin.restart(request, grpc_context)
