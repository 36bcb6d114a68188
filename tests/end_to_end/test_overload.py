"""At ten times the load that can be served, memory and latency stay bounded, and the rest gets a 429."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest

from protos import serving_pb2, serving_pb2_grpc
from tests.end_to_end.overload import Seen, capacity, overloaded, private_bytes, unloaded
from tests.end_to_end.running import Running, serving

pytestmark = pytest.mark.timeout(300)
NUM_SEQUENCES, NUM_WAITING = 4, 16


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start a service with few places."""
    flags = ("--max-num-sequences", str(NUM_SEQUENCES), "--max-waiting-requests", str(NUM_WAITING))
    with serving(tmp_path_factory.mktemp("overload"), "--dtype", "float32", *flags) as running:
        yield running


def run_overload(service: Running, seconds: float, capacity_seconds: float) -> tuple[Seen, Seen, float]:
    """Overload a service and check everything except times.

    Returns what clients saw in overload, what one client sees alone, and the seconds until the service was
    idle.
    """
    # The service keeps buffers by shape: this run makes it allocate them before its memory is measured.
    asyncio.run(capacity(service, NUM_SEQUENCES, capacity_seconds / 2))
    alone = asyncio.run(unloaded(service, 8))
    rate = asyncio.run(capacity(service, NUM_SEQUENCES, capacity_seconds))
    before = private_bytes(service)
    seen, idle_seconds = asyncio.run(overloaded(service, 10 * rate, seconds))
    growth = private_bytes(service) - before
    print(
        f"capacity {rate:.1f} requests/s; sent at {10 * rate:.1f}/s for {seconds:g} s: "
        f"{dict(seen.statuses)}, {seen.num_whole} whole; "
        f"p99 between tokens {seen.p99 * 1e3:.1f} ms, alone {alone.p99 * 1e3:.1f} ms "
        f"({seen.p99 / alone.p99:.2f} times); memory +{growth / 2**20:.0f} MiB; "
        f"idle after {idle_seconds:.2f} s; Retry-After {min(seen.retry_after)} to {max(seen.retry_after)}"
    )
    assert set(seen.statuses) == {200, 429}
    assert seen.num_whole >= NUM_SEQUENCES
    assert all(1 <= seconds <= 60 for seconds in seen.retry_after)
    assert growth < 200 << 20
    return seen, alone, idle_seconds


def test_a_short_overload_is_survived(small: Running) -> None:
    run_overload(small, seconds=4.0, capacity_seconds=3.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_ten_times_the_load_is_survived(small: Running) -> None:
    seen, alone, idle_seconds = run_overload(small, seconds=60.0, capacity_seconds=8.0)
    assert seen.p99 < 3 * alone.p99
    assert idle_seconds < 2.0


def generate(max_tokens: int, **fields: object) -> serving_pb2.GenerateRequest:
    sampling = serving_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    prompts = [serving_pb2.Prompt(text="Hello")]
    return serving_pb2.GenerateRequest(prompts=prompts, sampling=sampling, **fields)  # type: ignore[arg-type]


def test_grpc_says_resource_exhausted_and_when_to_come_again(small: Running) -> None:
    """Calls come faster than they can be answered, until one is refused."""
    with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
        stub = serving_pb2_grpc.ServingStub(channel)
        calls: list[grpc.Call] = []
        refused: grpc.Call | None = None
        give_up = time.monotonic() + 20
        while refused is None and time.monotonic() < give_up:
            calls.append(stub.Generate(generate(1500)))
            time.sleep(0.02)
            refused = next((call for call in calls if not call.is_active() and call.code().value[0]), None)
        assert refused is not None, f"{len(calls)} calls and none was refused"
        assert len(calls) > NUM_WAITING
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 <= int(dict(refused.trailing_metadata())["retry-after"]) <= 60
        for call in calls:
            call.cancel()
    assert small.wait_until_idle(5)["running"] == 0


@pytest.mark.parametrize("way", ["field", "header", "grpc-field", "grpc-deadline"])
def test_a_request_ends_at_its_own_deadline(small: Running, way: str) -> None:
    body = {"prompt": "Hello", "max_tokens": 1500, "ignore_eos": True}
    began = time.monotonic()
    if way.startswith("grpc"):
        with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
            stub = serving_pb2_grpc.ServingStub(channel)
            call = (
                stub.Generate(generate(1500, timeout_seconds=0.5))
                if way == "grpc-field"
                else stub.Generate(generate(1500), timeout=0.5)
            )
            with pytest.raises(grpc.RpcError):
                list(call)
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        headers = {"X-Request-Timeout": "0.5"} if way == "header" else {}
        with small.client() as client:
            timeout = {"timeout": 0.5} if way == "field" else {}
            response = client.post("/v1/completions", json={**body, **timeout}, headers=headers)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
    assert 0.5 <= time.monotonic() - began < 1.5
    assert small.wait_until_idle(2)["running"] == 0


def test_more_important_requests_overtake_those_that_wait(small: Running) -> None:
    """All places are full and requests wait. A request with a lower priority number overtakes them."""

    async def scenario() -> list[str]:
        done: list[str] = []
        async with httpx.AsyncClient(base_url=small.url, timeout=120, trust_env=False) as client:

            async def ask(name: str, max_tokens: int, priority: int) -> None:
                body = {"prompt": "Hi", "max_tokens": max_tokens, "ignore_eos": True, "priority": priority}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
                done.append(name)

            full = [asyncio.create_task(ask("first", 400 + 40 * index, 0)) for index in range(NUM_SEQUENCES)]
            while (await client.get("/load")).json()["running"] < NUM_SEQUENCES:
                await asyncio.sleep(0.02)
            late = [asyncio.create_task(ask("late", 200, 5)) for _ in range(4)]
            while (await client.get("/load")).json()["waiting"] < len(late):
                await asyncio.sleep(0.02)
            await asyncio.gather(*full, *late, asyncio.create_task(ask("urgent", 200, -5)))
        return done

    done = asyncio.run(scenario())
    assert done.index("urgent") < done.index("late")
