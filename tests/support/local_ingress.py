"""One ingress replica's HTTP and gRPC in the test's own process, with a supervisor that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from cluster.config.cluster_config import ClusterConfig
from cluster.errors import TooManyRequests
from cluster.ingress.auth import Access, Authenticator, Caller, make_authenticator
from cluster.ingress.grpc.calls import Calls
from cluster.ingress.grpc.services import GrpcMethods
from cluster.ingress.http.routes import http_app
from cluster.ingress.service import Service
from cluster.ingress.supervisor_follower import SupervisorLink
from cluster.messages import ClusterView, DenseAddresses
from cluster.supervisor.operations.messages import Drain, Operation, Scale
from tests.support.views import actor_view

CLIENT_KEY, ADMIN_KEY = "client-0123456789abcdef", "admin-0123456789abcdef"


@dataclass(slots=True)
class LedSupervisor:
    """A `SupervisorLink` whose operations change its view, or fail as a test says."""

    expert_actors: int = 2
    epoch: int = 1
    rows: int = 0
    """Rows that each expert actor has computed."""
    operations: list[str] = field(default_factory=list)
    failure: Exception | None = None
    pause_seconds: float = 0.0

    async def view(self, deadline_seconds: float) -> ClusterView:
        actors = tuple(
            actor_view(
                f"phimoe-expert-{index}",
                index=index,
                pid=100 + index,
                node_ip="127.0.0.1",
                experts=(index,),
                memory_bytes=1 << 33,
                rows_of_experts={index: self.rows},
            )
            for index in range(self.expert_actors)
        )
        return ClusterView(model="phimoe-tiny", epoch=self.epoch, actors=actors)

    async def addresses(
        self, known_version: int, wait_seconds: float, deadline_seconds: float
    ) -> DenseAddresses:
        if known_version:
            await asyncio.sleep(wait_seconds)
        return DenseAddresses(version=1, token="", dense=())

    async def operate(self, operation: Operation, deadline_seconds: float) -> None:
        await asyncio.sleep(self.pause_seconds)
        if self.failure is not None:
            raise self.failure
        words = [operation.name()]
        if isinstance(operation, Scale):
            self.expert_actors = operation.expert_actors
            words.append(str(operation.expert_actors))
        elif isinstance(operation, Drain):
            assert deadline_seconds > operation.grace_seconds
            words.append(f"{operation.grace_seconds:g}")
        self.operations.append(" ".join(words))
        self.epoch += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenIngress:
    """The parts with which a test works."""

    config: ClusterConfig
    supervisor: LedSupervisor
    service: Service
    authenticator: Authenticator
    methods: GrpcMethods

    def client(self, key: str | None = None, address: str = "127.0.0.1") -> httpx.AsyncClient:
        """An HTTP client that calls the application as a server would."""
        app = http_app(self.service, self.authenticator)
        transport = httpx.ASGITransport(app=app, client=(address, 50000))
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://phimoe", headers=headers)


@contextlib.asynccontextmanager
async def open_ingress(config: ClusterConfig | None = None) -> AsyncIterator[OpenIngress]:
    """DenseAddresses of a service that has found its supervisor but has no dense actor."""
    config, supervisor = config or ClusterConfig(), LedSupervisor()

    async def find() -> SupervisorLink:
        return supervisor

    service, authenticator = Service(config, find), make_authenticator(config)
    calls = Calls(authenticator, config.max_body_bytes)
    tasks = asyncio.all_tasks()
    service.start()
    try:
        for _ in range(100):
            await asyncio.sleep(0)
        yield OpenIngress(
            config=config,
            supervisor=supervisor,
            service=service,
            authenticator=authenticator,
            methods=GrpcMethods(service, calls),
        )
    finally:
        begun = asyncio.all_tasks() - tasks
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


def num_admissible(authenticator: Authenticator, key: str) -> int:
    """Return how many more calls with a client's key would be admitted now."""
    caller = Caller(authorization=(f"Bearer {key}",))
    number = 0
    with contextlib.ExitStack() as admitted, contextlib.suppress(TooManyRequests):
        while True:
            admitted.enter_context(authenticator.admitted(Access.CLIENT, caller))
            number += 1
    return number


def with_keys(folder: Path, **keys: object) -> ClusterConfig:
    """Return a config with one key for clients and one for operators."""
    (folder / "api-keys").write_text(f"client:{CLIENT_KEY}\n")
    (folder / "admin-keys").write_text(f"operator:{ADMIN_KEY}\n")
    files = {"api_keys_file": str(folder / "api-keys"), "admin_keys_file": str(folder / "admin-keys")}
    return ClusterConfig(**files, **keys)  # type: ignore[arg-type]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate and key for localhost and 127.0.0.1."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True, timeout=60)
    return certificate, key
