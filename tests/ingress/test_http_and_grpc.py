"""Keys, limits and admin operations over HTTP and over gRPC with TLS, in one process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actors.protocol.messages import EngineCounters, Load
from cluster.config.cluster_config import ClusterConfig
from cluster.ingress.grpc.admin import cluster_status
from cluster.ingress.grpc.calls import peer_address
from cluster.ingress.grpc.tls import start_tls_server
from cluster.ingress.http.routes import routes
from cluster.messages import ActorView, ClusterView
from cluster.supervisor.remote_actor import ActorLostError, OperationError
from protos import admin_pb2, admin_pb2_grpc, serving_pb2, serving_pb2_grpc
from tests.end_to_end.running import free_ports
from tests.support.local_ingress import (
    ADMIN_KEY,
    CLIENT_KEY,
    OpenIngress,
    make_certificate,
    num_admissible,
    open_ingress,
    with_keys,
)
from tests.support.views import actor_view

PUBLIC = {("GET", "/health"), ("GET", "/version"), ("GET", "/openapi.json")}


def every_route(ingress: OpenIngress) -> list[tuple[str, str]]:
    return [(route.method, route.path) for route in routes(ingress.service, ingress.authenticator)]


def test_every_route_but_the_public_ones_wants_a_key_and_says_so_in_openais_shape(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_ingress(with_keys(tmp_path)) as ingress, ingress.client() as client:
            for method, path in every_route(ingress):
                response = await client.request(method, path if path[-1] != "/" else path + "x", content=b"{")
                if (method, path) in PUBLIC:
                    assert response.status_code in (200, 503)
                    continue
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                error = response.json()["error"]
                assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")

    asyncio.run(run())


def test_admin_routes_want_an_admin_key_and_others_take_it_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_ingress(with_keys(tmp_path)) as ingress:
            async with ingress.client(CLIENT_KEY) as client:
                assert (await client.get("/cluster")).status_code == 200
                for path in ("/admin/drain", "/admin/scale", "/admin/rebalance", "/admin/restart"):
                    refused = await client.post(path, json={"expert_actors": 3})
                    assert (refused.status_code, refused.json()["error"]["code"]) == (
                        403,
                        "admin_key_required",
                    )
            async with ingress.client(ADMIN_KEY) as client:
                assert (await client.get("/cluster")).json() == (await client.get("/admin/status")).json()
                scaled = await client.post("/admin/scale", json={"expert_actors": 5})
                assert len(scaled.json()["actors"]) == 5
                drained = await client.post("/admin/drain", json={"grace_seconds": 1.5})
                assert drained.status_code == 200
                assert (await client.post("/admin/restart")).status_code == 200
                assert (await client.post("/admin/rebalance", json={})).status_code == 200
            assert ingress.supervisor.operations == ["scale 5", "drain 1.5", "restart", "rebalance"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        pytest.param("/admin/scale", {}, "expert_actors: is required", id="missing"),
        pytest.param(
            "/admin/scale", {"expert_actors": 17}, "expert_actors: 17 is outside [1, 16]", id="too-many"
        ),
        pytest.param(
            "/admin/scale", {"expert_actors": "2"}, "expert_actors: '2' is not an integer", id="text"
        ),
        pytest.param("/admin/scale", {"expert_actors": 2, "x": 1}, "x: is not a parameter", id="unknown"),
        pytest.param(
            "/admin/drain", {"grace_seconds": -1}, "grace_seconds: -1 is outside [0, 3600]", id="negative"
        ),
        pytest.param("/admin/restart", {"now": True}, "now: is not a parameter", id="unknown-alone"),
    ],
)
def test_a_wrong_admin_body_is_named_and_nothing_happens(path: str, body: dict[str, Any], words: str) -> None:
    async def run() -> None:
        async with open_ingress() as ingress, ingress.client() as client:
            response = await client.post(path, json=body)
            assert response.status_code == 400 and words in response.json()["error"]["message"]
            assert ingress.supervisor.operations == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        pytest.param(
            ValueError("expert_actors is 5, but 4 GPUs are there"), 400, "invalid_value", id="refused"
        ),
        pytest.param(
            OperationError("scale", "a rebalance is under way"), 409, "operation_failed", id="not-done"
        ),
        pytest.param(ActorLostError("phimoe-supervisor", "died"), 503, "unavailable", id="lost"),
        pytest.param(asyncio.TimeoutError(), 504, "deadline_exceeded", id="late"),
        pytest.param(RuntimeError("boom"), 500, "internal_error", id="defect"),
    ],
)
def test_what_the_supervisor_raises_becomes_an_answer(failure: Exception, status: int, code: str) -> None:
    async def run() -> None:
        async with open_ingress() as ingress, ingress.client() as client:
            ingress.supervisor.failure = failure
            response = await client.post("/admin/scale", json={"expert_actors": 5})
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)

    asyncio.run(run())


def test_without_keys_a_web_page_and_another_host_cannot_operate() -> None:
    async def run() -> None:
        async with open_ingress() as ingress:
            async with ingress.client() as client:
                page = await client.post("/admin/restart", headers={"Origin": "http://evil.example"})
                forwarded = await client.post("/admin/restart", headers={"X-Forwarded-For": "192.0.2.7"})
            async with ingress.client(address="192.0.2.7") as client:
                elsewhere = await client.post("/admin/restart")
            assert page.status_code == elsewhere.status_code == forwarded.status_code == 403
            assert "admin_keys_file" in page.json()["error"]["message"]
            assert ingress.supervisor.operations == []

    asyncio.run(run())


def test_a_body_that_does_not_arrive_is_given_up_and_its_place_freed(tmp_path: Path) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"prompt":'
        await asyncio.sleep(30)

    async def run() -> None:
        config = with_keys(tmp_path, body_timeout_seconds=0.2, max_requests_per_key=1)
        async with open_ingress(config) as ingress, ingress.client(CLIENT_KEY) as client:
            late = asyncio.create_task(client.post("/v1/completions", content=trickle()))
            while num_admissible(ingress.authenticator, CLIENT_KEY):
                await asyncio.sleep(0.01)
            crowded = await client.get("/load")
            assert (crowded.status_code, crowded.headers["retry-after"]) == (429, "1")
            assert "max_requests_per_key" in crowded.json()["error"]["message"]
            response = await late
            assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timed_out")
            assert num_admissible(ingress.authenticator, CLIENT_KEY) == 1
            assert (await client.get("/load")).status_code == 200

    asyncio.run(run())


def test_a_wrong_method_is_told_the_right_ones() -> None:
    async def run() -> None:
        async with open_ingress() as ingress, ingress.client() as client:
            response = await client.delete("/tokenize")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")

    asyncio.run(run())


@asynccontextmanager
async def tls_channel(folder: Path, **keys: object) -> AsyncIterator[tuple[OpenIngress, grpc.aio.Channel]]:
    certificate, key = make_certificate(folder)
    (port,) = free_ports(1)
    files = {"tls_cert_file": str(certificate), "tls_key_file": str(key), "grpc_tls_port": port}
    async with open_ingress(with_keys(folder, **{**files, **keys})) as ingress:
        server = await start_tls_server(ingress.config, ingress.methods)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        try:
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                yield ingress, channel
        finally:
            await server.stop(0)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_grpc_over_tls_asks_for_the_same_keys(tmp_path: Path) -> None:
    async def run() -> None:
        async with tls_channel(tmp_path) as (ingress, channel):
            serving, admin = serving_pb2_grpc.ServingStub(channel), admin_pb2_grpc.AdminStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status != 0
            text = serving_pb2.DetokenizeRequest(token_ids=[1])
            assert await code_of(serving.Detokenize(text)) == grpc.StatusCode.UNAUTHENTICATED
            wrong = bearer("wrong-0123456789abcdef")
            assert await code_of(serving.Detokenize(text, metadata=wrong)) == grpc.StatusCode.UNAUTHENTICATED
            # There is no dense actor, so an admitted call finds that the service is not ready.
            known = bearer(CLIENT_KEY)
            assert await code_of(serving.Detokenize(text, metadata=known)) == grpc.StatusCode.UNAVAILABLE
            request = admin_pb2.StatusRequest()
            assert await code_of(admin.Status(request, metadata=known)) == grpc.StatusCode.PERMISSION_DENIED
            status = await admin.Status(request, metadata=bearer(ADMIN_KEY))
            assert [actor.name for actor in status.actors] == ["phimoe-expert-0", "phimoe-expert-1"]
            assert status.actors[0].memory_bytes == 1 << 33
            scaled = await admin.Scale(admin_pb2.ScaleRequest(expert_actors=3), metadata=bearer(ADMIN_KEY))
            assert len(scaled.actors) == 3
            await admin.Drain(admin_pb2.DrainRequest(), metadata=bearer(ADMIN_KEY))
            await admin.Rebalance(admin_pb2.RebalanceRequest(), metadata=bearer(ADMIN_KEY))
            await admin.Restart(admin_pb2.RestartRequest(), metadata=bearer(ADMIN_KEY))
            assert ingress.supervisor.operations == ["scale 3", "drain 30", "rebalance", "restart"]
            empty = admin.Scale(admin_pb2.ScaleRequest(), metadata=bearer(ADMIN_KEY))
            assert await code_of(empty) == grpc.StatusCode.INVALID_ARGUMENT
            assert num_admissible(ingress.authenticator, CLIENT_KEY) == ingress.config.max_requests_per_key

    asyncio.run(run())


def test_plain_text_does_not_get_through_the_tls_port(tmp_path: Path) -> None:
    async def run() -> None:
        async with tls_channel(tmp_path) as (ingress, _):
            address = f"localhost:{ingress.config.grpc_tls_port}"
            async with grpc.aio.insecure_channel(address) as plain:
                check = health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert await code_of(check) == grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_a_message_past_the_limit_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with tls_channel(tmp_path, max_body_bytes=1000) as (_, channel):
            request = serving_pb2.TokenizeRequest(text="x" * 1001)
            call = serving_pb2_grpc.ServingStub(channel).Tokenize(request, metadata=bearer(CLIENT_KEY))
            assert await code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def watch_status(
    channel: grpc.aio.Channel, max_silence_seconds: float
) -> grpc.aio.UnaryStreamCall[admin_pb2.WatchStatusRequest, admin_pb2.ClusterStatus]:
    request = admin_pb2.WatchStatusRequest(max_silence_seconds=max_silence_seconds)
    return admin_pb2_grpc.AdminStub(channel).WatchStatus(request, metadata=bearer(ADMIN_KEY), timeout=20)


def test_watch_status_tells_every_change_and_repeats_it_without_a_change(tmp_path: Path) -> None:
    async def run() -> None:
        async with tls_channel(tmp_path) as (ingress, channel):
            call = watch_status(channel, max_silence_seconds=1)
            assert (await call.read()).epoch == 1
            ingress.supervisor.epoch = 7
            assert (await call.read()).epoch == 7
            assert (await call.read()).epoch == 7
            call.cancel()

    asyncio.run(run())


def test_counters_that_grow_are_no_change_of_the_status(tmp_path: Path) -> None:
    async def run() -> None:
        async with tls_channel(tmp_path) as (ingress, channel):
            call = watch_status(channel, max_silence_seconds=60)
            assert (await call.read()).actors[1].rows_of_experts == {1: 0}
            ingress.supervisor.rows = 5
            await asyncio.sleep(1.2)
            ingress.supervisor.epoch = 7
            status = await call.read()
            assert (status.epoch, status.actors[1].rows_of_experts) == (7, {1: 5})
            call.cancel()

    asyncio.run(run())


def test_nothing_that_is_logged_holds_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with open_ingress(with_keys(tmp_path)) as ingress:
            ingress.supervisor.failure = RuntimeError("boom")
            for key in (CLIENT_KEY, ADMIN_KEY):
                async with ingress.client(key) as client:
                    await client.post("/admin/restart")
                    await client.post("/tokenize", content=b"{")

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert "boom" in caplog.text
    assert CLIENT_KEY not in caplog.text and ADMIN_KEY not in caplog.text


def test_status_messages_have_every_field_of_the_view() -> None:
    pairs = (
        (admin_pb2.ClusterStatus, ClusterView),
        (admin_pb2.ActorStatus, ActorView),
        (admin_pb2.ActorLoad, Load),
        (admin_pb2.EngineCounters, EngineCounters),
    )
    for message, struct in pairs:
        assert set(struct.__struct_fields__) <= set(message.DESCRIPTOR.fields_by_name)


def test_what_a_dense_actor_does_and_did_is_in_its_status() -> None:
    load = Load(running=3, waiting=1, free_blocks=8, total_blocks=10)
    counters = EngineCounters(
        steps=9,
        failed_sequences=1,
        generated_tokens=27,
        preemptions=2,
        draft_tokens=6,
        accepted_draft_tokens=4,
    )
    actors = (actor_view("a", "dense", load=load, counters=counters), actor_view("b"))
    status = cluster_status(ClusterView(model="m", epoch=1, actors=actors))
    assert MessageToDict(status.actors[0].load, preserving_proto_field_name=True) == {
        "running": 3,
        "waiting": 1,
        "free_blocks": "8",
        "total_blocks": "10",
    }
    assert (status.actors[0].counters.steps, status.actors[0].counters.accepted_draft_tokens) == (9, 4)
    assert not status.actors[1].HasField("load") and not status.actors[1].HasField("counters")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[2001:db8::1]:5000", "2001:db8::1"),
        ("unix:/tmp/socket", None),
        ("", None),
    ],
)
def test_the_address_in_a_peers_name_is_found(peer: str, address: str | None) -> None:
    assert peer_address(peer) == address


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param({"tls_cert_file": "c"}, "tls_key_file is none", id="no-key"),
        pytest.param({"tls_key_file": "k"}, "tls_cert_file is none", id="no-certificate"),
        pytest.param(
            {"tls_cert_file": "c", "tls_key_file": "k", "proxy": "haproxy"},
            "proxy is 'haproxy'",
            id="haproxy",
        ),
        pytest.param(
            {"tls_cert_file": "c", "tls_key_file": "k", "grpc_tls_port": 8000},
            "grpc_tls_port is 8000",
            id="port",
        ),
    ],
)
def test_tls_that_cannot_be_is_refused_in_the_config(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterConfig(**keys)


def test_every_limit_of_a_request_is_a_key_of_the_config() -> None:
    from cluster.config.request_limits import Limits, limits_of

    fixed = {"max_request_id_chars", "completion_max_tokens", "max_priority", "max_timeout_seconds"}
    names = {item.name for item in dataclasses.fields(Limits)}
    assert names - {item.name for item in dataclasses.fields(ClusterConfig)} == fixed
    assert limits_of(ClusterConfig()) == Limits()
    assert limits_of(ClusterConfig(max_n=3)).max_n == 3
