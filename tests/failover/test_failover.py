"""Tests the loss of dense actors and ingress replicas: each stream has the tokens of an undisturbed run."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import Hello
from cluster.errors import DeadlineExceeded, ServerUnavailable, TooManyRequests
from cluster.ingress.service import Service
from tests.failover.group import ROOT, TOKEN, Group, serving, stream, until_idle

pytestmark = pytest.mark.timeout(240)
NUM_STREAMS = 8
LENGTH = 300


def served(
    count: int, **keys: Any
) -> Callable[[Callable[[Group, Service], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Run a test with an ingress replica and a number of dense actors."""

    def decorate(test: Callable[[Group, Service], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def run() -> None:
            async with serving(count, **keys) as (group, service):
                await test(group, service)

        def sync() -> None:
            asyncio.run(run())

        sync.__name__ = test.__name__
        return sync

    return decorate


async def streams(service: Service, gaps: list[list[float]] | None = None) -> list[list[int]]:
    """Return the same random streams each time."""
    return await asyncio.gather(
        *(
            stream(
                service,
                None if gaps is None else gaps[number],
                max_tokens=LENGTH,
                seed=number,
                temperature=1.0,
            )
            for number in range(NUM_STREAMS)
        )
    )


@served(2)
async def test_dense_actors_killed_one_by_one_fail_no_request(group: Group, service: Service) -> None:
    expected = await streams(service)
    longest = 0.0
    for index in (0, 1):
        gaps: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
        running = asyncio.create_task(streams(service, gaps))
        await _until_under_way(gaps)
        assert not running.done()
        group.processes[index].signal(signal.SIGKILL)
        assert await running == expected
        longest = max(longest, *map(max, gaps))
        await group.restart(index)
        await _until_ready(service, 2)
    await until_idle(service, 5)
    print(f"longest pause {longest:.2f} s")


@served(2)
async def test_a_dense_actor_that_dies_at_an_exact_step_and_layer_changes_no_token(
    group: Group, service: Service
) -> None:
    expected = await streams(service)
    for place in ((0, 3), (40, 2), (90, 0)):
        await group.restart(0, death=place)
        await _until_ready(service, 2)
        assert await streams(service) == expected
        assert group.processes[0].is_dead, f"it did not come to step and layer {place}"
    await group.restart(0)
    await until_idle(service, 5)


@served(2, max_drafts=6)
async def test_a_dense_actor_that_dies_with_drafts_under_way_changes_no_token(
    group: Group, service: Service
) -> None:
    async def loops(gaps: list[list[float]]) -> list[list[int]]:
        """Return the tokens of streams that soon repeat the same words."""
        runs = (
            stream(service, gap, max_tokens=LENGTH, temperature=0.0, prompt="x " * n)
            for n, gap in enumerate(gaps, 1)
        )
        return await asyncio.gather(*runs)

    pieces: list[list[float]] = [[] for _ in range(3)]
    expected = await loops(pieces)
    assert max(map(len, pieces)) < LENGTH / 2, "several tokens came at a time"
    await group.restart(0, death=(20, 2))
    await _until_ready(service, 2)
    assert await loops([[] for _ in pieces]) == expected
    assert group.processes[0].is_dead, "it did not come to that step"
    await group.restart(0)
    await until_idle(service, 5)


@served(2)
async def test_a_rolling_restart_that_is_announced_fails_no_request(group: Group, service: Service) -> None:
    expected = await streams(service)
    running = asyncio.create_task(_again_and_again(service, expected))
    for index in (0, 1):
        await asyncio.sleep(0.5)
        group.tell(leaving=index)
        await asyncio.sleep(0.2)
        await group.restart(index)
        await _until_ready(service, 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until_idle(service, 5)


@served(1)
async def test_the_only_dense_actor_killed_is_waited_for(group: Group, service: Service) -> None:
    expected = await streams(service)
    gaps: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
    running = asyncio.create_task(streams(service, gaps))
    await _until_under_way(gaps)
    assert not running.done()
    await group.restart(0)
    assert await running == expected


@served(2)
async def test_a_stopped_dense_actor_is_left_in_a_second_and_forgets(group: Group, service: Service) -> None:
    expected = await streams(service)
    gaps: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
    running = asyncio.create_task(streams(service, gaps))
    await _until_under_way(gaps)
    assert not running.done()
    group.processes[0].signal(signal.SIGSTOP)
    try:
        assert await running == expected
        pause = max(map(max, gaps))
        print(f"longest pause {pause:.2f} s")
        assert 0.5 < pause < 2.0
    finally:
        group.processes[0].signal(signal.SIGCONT)
    await _until_ready(service, 2)
    await until_idle(service, 5)


@served(2)
async def test_a_killed_ingress_leaves_nothing_at_the_dense_actors(group: Group, service: Service) -> None:
    addresses = [text for process in group.processes for text in (str(process.index), str(process.port))]
    command = [sys.executable, "-m", "tests.failover.ingress_process", TOKEN, "8", *addresses]
    doomed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert doomed.stdout is not None
        await asyncio.wait_for(asyncio.to_thread(doomed.stdout.readline), 60)
        async with asyncio.timeout(5):
            while sum(load.running for load in service.loads) < 8:
                await asyncio.sleep(0.01)
        doomed.kill()
        began = time.monotonic()
        assert len(await stream(service, max_tokens=4)) == 4
        print(f"another ingress is answered after {time.monotonic() - began:.2f} s")
        await until_idle(service, 2)
    finally:
        doomed.kill()
        doomed.wait(10)
        assert doomed.stdout is not None
        doomed.stdout.close()


@served(1, max_batch_tokens=32768)
async def test_a_long_prefill_does_not_stop_the_heartbeats(group: Group, service: Service) -> None:
    heartbeats: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", group.processes[0].port)
    writer.write(encode_frame(Hello(token=TOKEN)))

    async def listen() -> None:
        while True:
            await read_frame(reader)
            heartbeats.append(time.monotonic())

    listening = asyncio.create_task(listen())
    gaps: list[list[float]] = [[] for _ in range(16)]
    prompts = [[5 + number] * 2000 for number in range(16)]
    await asyncio.gather(
        *(
            stream(service, gap, prompt=prompt, max_tokens=1)
            for gap, prompt in zip(gaps, prompts, strict=True)
        )
    )
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    writer.close()
    longest = max(later - earlier for earlier, later in itertools.pairwise(heartbeats))
    print(f"prefill of {max(map(max, gaps)):.2f} s, longest pause {longest:.3f} s")
    assert max(map(max, gaps)) > 1.0
    assert longest < 0.6


@served(1, max_waiting_requests=3)
async def test_past_the_bound_requests_are_refused_with_a_time_to_come_again(
    group: Group, service: Service
) -> None:
    running = [asyncio.create_task(stream(service, max_tokens=200)) for _ in range(3)]
    await asyncio.sleep(0.1)
    with pytest.raises(TooManyRequests, match="3 requests are under way") as refused:
        await stream(service, max_tokens=1)
    assert 1 <= refused.value.retry_after_seconds <= 60
    assert all(len(tokens) == 200 for tokens in await asyncio.gather(*running))
    assert len(await stream(service, max_tokens=1)) == 1


@served(1)
async def test_a_request_ends_at_its_own_deadline_and_frees_its_place(group: Group, service: Service) -> None:
    tokens: list[float] = []
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.4 seconds"):
        await stream(service, tokens, max_tokens=1500, timeout=0.4)
    assert 0.4 <= time.monotonic() - began < 0.6 and tokens
    await until_idle(service, 1)


@served(1)
async def test_a_draining_replica_refuses_new_requests_and_ends_the_rest_after_the_grace_period(
    group: Group, service: Service
) -> None:
    short = asyncio.create_task(stream(service, max_tokens=20))
    long = asyncio.create_task(stream(service, max_tokens=1500))
    await asyncio.sleep(0.05)
    group.tell(drain_seconds=0.4)
    async with asyncio.timeout(1):
        while not service.is_draining:
            await asyncio.sleep(0.01)
    assert not service.is_ready
    with pytest.raises(ServerUnavailable, match="draining"):
        await stream(service, max_tokens=1)
    assert len(await short) == 20
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="shutting down"):
        await long
    assert time.monotonic() - began < 1.2
    await until_idle(service, 1)


async def _until_under_way(gaps: list[list[float]]) -> None:
    """Wait until each stream has a tenth of its tokens."""
    async with asyncio.timeout(10):
        while min(map(len, gaps)) < LENGTH // 10:
            await asyncio.sleep(0.005)


async def _until_ready(service: Service, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(channel.is_ready for channel in service.channels) < count:
            await asyncio.sleep(0.02)


async def _again_and_again(service: Service, expected: list[list[int]]) -> None:
    while True:
        assert await streams(service) == expected
