"""The Serve deployment that takes HTTP and gRPC requests. Each of its replicas has one `Service`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from cluster.config.cluster_config import from_mapping
from cluster.ingress.auth import make_authenticator
from cluster.ingress.grpc.calls import Calls
from cluster.ingress.grpc.services import GrpcMethods, forwards_grpc
from cluster.ingress.grpc.tls import start_tls_server
from cluster.ingress.http.routes import http_app
from cluster.ingress.service import Service
from cluster.ingress.supervisor_follower import SupervisorLink


@serve.ingress()
@forwards_grpc
class Ingress:
    """One ingress replica.

    Serve builds its HTTP application once, and calls the method of this class that has a gRPC method's name.
    """

    async def __init__(self, mapping: Mapping[str, object]) -> None:  # type: ignore[misc]
        config = from_mapping(mapping)
        self._service = Service(config, self._find_supervisor)
        self._authenticator = make_authenticator(config)
        self.grpc = GrpcMethods(self._service, Calls(self._authenticator, config.max_body_bytes))
        self._tls_server = await start_tls_server(config, self.grpc) if config.has_tls else None
        self._service.start()

    async def __del__(self) -> None:
        """Stop the TLS server.

        Serve calls this after the requests that it sent have ended, and waits for it.
        """
        if self._tls_server is not None:
            await self._tls_server.stop(self._service.config.drain_grace_seconds)

    async def _find_supervisor(self) -> SupervisorLink:
        """Return the running supervisor, or start one if there is none.

        There is none at first if a Serve config file starts the service instead of `phimoe serve`.
        """
        from cluster.ray_actors.supervisor_actor import ensure_supervisor

        return await ensure_supervisor(self._service.config)

    async def __serve_build_asgi_app__(self) -> Any:
        return http_app(self._service, self._authenticator)
