"""What HTTP promises beyond what OpenAI's client uses: errors, operators' routes, freed places."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from tests.end_to_end.running import Running

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        pytest.param("GET", "/nowhere", b"", 404, "route_not_found", id="no-route"),
        pytest.param("PUT", "/v1/completions", b"{}", 405, "method_not_allowed", id="wrong-method"),
        pytest.param("POST", "/v1/completions", b'{"prompt', 400, "malformed_body", id="cut-json"),
        pytest.param("POST", "/v1/completions", b"\xff\xfe", 400, "malformed_body", id="no-text"),
        pytest.param("POST", "/v1/completions", b"[1]", 400, "malformed_body", id="no-object"),
        pytest.param("POST", "/v1/completions", b"", 400, "malformed_body", id="nothing"),
        pytest.param(
            "POST", "/v1/chat/completions", b'{"messages": 1}', 400, "invalid_value", id="wrong-type"
        ),
        pytest.param("GET", "/v1/models/other", b"", 404, "model_not_found", id="no-model"),
        pytest.param("POST", "/v1/completions", b" " * (9 << 20), 413, "payload_too_large", id="too-large"),
    ],
)
def test_every_error_has_openais_shape(
    service: Running, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    with service.client() as client:
        response = client.request(method, path, content=content)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


def test_tokenize_and_detokenize_are_inverse(service: Running) -> None:
    with service.client() as client:
        tokens = client.post("/tokenize", json={"prompt": "Solve 2x + 3 = 7"}).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "Solve 2x + 3 = 7"}


def test_cluster_shows_every_actor(service: Running) -> None:
    view = service.cluster()
    assert set(view) == {"model", "epoch", "actors", "placement_version", "operation"}
    names = ["phimoe-dense-0", "phimoe-expert-0", "phimoe-expert-1", "phimoe-supervisor"]
    assert sorted(actor["name"] for actor in view["actors"]) == names
    keys = {
        "name",
        "kind",
        "index",
        "pid",
        "node_ip",
        "device",
        "state",
        "restarts",
        "experts",
        "memory_bytes",
        "lost_links",
        "products",
        "load",
        "counters",
        "rows_of_experts",
    }
    pids = {process.pid for process in service.descendants()}
    for actor in view["actors"]:
        assert set(actor) == keys
        assert actor["pid"] in pids and actor["memory_bytes"] > 0
    experts = [expert for actor in view["actors"] if actor["kind"] == "expert" for expert in actor["experts"]]
    assert experts == list(range(16))


def test_without_keys_this_host_may_operate_and_web_pages_may_not(service: Running) -> None:
    with service.client() as client:
        assert client.get("/admin/status").json()["model"] == "phimoe-tiny"
        refused = client.get("/admin/status", headers={"Origin": "http://localhost:8000"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")


def test_a_streamed_answer_ends_with_done(service: Running) -> None:
    with service.client() as client:
        body = {"prompt": "Hello", "max_tokens": 3, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_place(service: Running, stream: bool) -> None:
    service.wait_until_idle()
    body = {"prompt": "Hello", "max_tokens": 1500, "ignore_eos": True, "stream": stream}

    async def leave_early() -> None:
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            task = asyncio.create_task(client.post("/v1/completions", json=body, timeout=120))
            while not (await client.get("/load")).json()["server_load"]:
                await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave_early())
    # Far less than the 1,500 tokens would take.
    load = service.wait_until_idle(seconds=5)
    assert load["running"] == load["waiting"] == load["server_load"] == 0
    assert load["free_blocks"] == load["total_blocks"]


async def _random_stream(client: httpx.AsyncClient, index: int) -> str:
    """Send one streamed request that may leave in the middle; return "left" or how the stream ended."""
    dice = random.Random(index)
    leave_after = dice.randrange(1, 20) if dice.random() < 0.4 else None
    body = {
        "prompt": "Solve " * dice.randrange(1, 20),
        "max_tokens": dice.randrange(1, 40),
        "ignore_eos": True,
        "seed": index,
        "stream": True,
    }
    count, last = 0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            last = line or last
            count += line.startswith("data: {")
            if leave_after is not None and count >= leave_after:
                return "left"
    return last


def _many_streams(service: Running, count: int) -> list[str]:
    async def run() -> list[str]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=service.url, timeout=240, limits=limits, trust_env=False
        ) as client:
            return await asyncio.gather(*(_random_stream(client, index) for index in range(count)))

    return asyncio.run(run())


def test_two_hundred_streams_with_cancellations_end_properly_and_return_all_blocks(service: Running) -> None:
    ends = _many_streams(service, 200)
    assert set(ends) == {"left", "data: [DONE]"}
    load = service.wait_until_idle()
    assert load["running"] == load["waiting"] == load["server_load"] == 0
    assert load["free_blocks"] == load["total_blocks"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_two_thousand_requests(service: Running) -> None:
    def memory() -> int:
        return sum(process.memory_full_info().uss for process in service.descendants())

    _many_streams(service, 400)
    before = memory()
    for _ in range(10):
        _many_streams(service, 200)
    assert service.wait_until_idle()["free_blocks"] == service.load()["total_blocks"]
    assert memory() < before * 1.05 + (32 << 20)
