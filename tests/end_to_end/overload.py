"""An open-loop client that sends more requests than a service can serve, and what the client sees."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.end_to_end.running import Running

OUTPUT_TOKENS = 96


@dataclass(kw_only=True, slots=True)
class Seen:
    """What clients saw."""

    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of a stream, for all streams."""
    statuses: Counter[int] = field(default_factory=Counter)
    retry_after: list[int] = field(default_factory=list)
    num_whole: int = 0
    """Streams that ended as they should."""

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.gaps, n=100)[98]


async def one_stream(port: int, number: int, seen: Seen) -> None:
    """Send one request with a prompt of 10 to 400 tokens.

    It uses plain sockets, since the client must not take the cores from the service.
    """
    dice = random.Random(number)
    body = json.dumps(
        {
            "prompt": [dice.randrange(5, 300) for _ in range(dice.randrange(10, 400))],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "seed": number,
            "stream": True,
            "return_token_ids": True,
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, headers = await _read_head(reader)
        seen.statuses[status] += 1
        if status != 200:
            seen.retry_after.append(int(headers[b"retry-after"]))
            return
        last: float | None = None
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                now = time.monotonic()
                if last is not None:
                    seen.gaps.append(now - last)
                last = now
            seen.num_whole += line.startswith(b"data: [DONE]")
    finally:
        writer.transport.abort()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    pairs = (line.partition(b":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name: value.strip() for name, _, value in pairs}


async def unloaded(service: Running, count: int) -> Seen:
    """Run one stream after the other."""
    seen = Seen()
    for number in range(count):
        await one_stream(service.port, number, seen)
    return seen


async def capacity(service: Running, num_clients: int, seconds: float) -> float:
    """Return how many requests per second the service answers while `num_clients` clients keep asking."""
    seen, number = Seen(), iter(range(10**6, 2 * 10**6))

    async def ask() -> None:
        while True:
            await one_stream(service.port, next(number), seen)

    tasks = [asyncio.create_task(ask()) for _ in range(num_clients)]
    await asyncio.sleep(seconds)
    await _cancel(tasks)
    return seen.num_whole / seconds


async def overloaded(service: Running, requests_per_second: float, seconds: float) -> tuple[Seen, float]:
    """Send requests at a rate that does not depend on the answers; then all clients leave.

    Returns what they saw, and the seconds after which the service was idle and every block free.
    """
    seen = Seen()
    tasks: list[asyncio.Task[None]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while len(tasks) < now * requests_per_second:
            tasks.append(asyncio.create_task(one_stream(service.port, len(tasks), seen)))
        await asyncio.sleep(0.01)
    failed = [task.exception() for task in tasks if task.done() and task.exception()]
    assert not failed, failed[0]
    ended = time.monotonic()
    await _cancel(tasks)
    load = await asyncio.to_thread(service.wait_until_idle, 30.0)
    assert load["free_blocks"] == load["total_blocks"]
    return seen, time.monotonic() - ended


def private_bytes(service: Running) -> int:
    """Return the private memory of all processes of the service."""
    return sum(process.memory_full_info().uss for process in service.descendants())


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
