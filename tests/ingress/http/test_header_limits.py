"""uvicorn limits the time and the size of a request's header."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from cluster.ingress.http.header_limits import GuardedProtocol

MAX_BYTES = 16384


async def hello(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    content = str(len(body)).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@contextlib.asynccontextmanager
async def connection(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    monkeypatch.setenv("PHIMOE_HEADER_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("PHIMOE_MAX_HEADER_BYTES", str(MAX_BYTES))
    config = uvicorn.Config(hello, port=0, http=GuardedProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    finally:
        server.should_exit = True
        await serving


async def status_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return int(head.split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize(
    "opening", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "], ids=["nothing", "line", "field"]
)
def test_a_header_that_does_not_end_in_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch, opening: bytes
) -> None:
    async def run() -> None:
        async with connection(monkeypatch) as (reader, writer):
            began = time.monotonic()
            writer.write(opening)
            status, body = await status_of(reader)
            assert (status, json.loads(body)["error"]["code"]) == (408, "header_timed_out")
            assert await reader.read() == b""
            assert 0.8 < time.monotonic() - began < 4

    asyncio.run(run())


def test_a_byte_now_and_then_does_not_buy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with connection(monkeypatch) as (reader, writer):
            answer = asyncio.create_task(status_of(reader))
            writer.write(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(20):
                writer.write(b"a")
                await asyncio.sleep(0.1)
            assert (await answer)[0] == 408

    asyncio.run(run())


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MAX_BYTES + b"\r\n\r\n", id="one-field"),
        pytest.param(b"GET /" + b"a" * MAX_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="target"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4096 + b"\r\n", id="many-fields"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 30_000, id="without-end"),
    ],
)
def test_a_header_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, header: bytes) -> None:
    async def run() -> None:
        async with connection(monkeypatch) as (reader, writer):
            for start in range(0, len(header), 10_000):
                writer.write(header[start : start + 10_000])
                await asyncio.sleep(0.02)
            status, body = await status_of(reader)
            assert (status, json.loads(body)["error"]["code"]) == (431, "header_too_large")

    asyncio.run(run())


def test_bodies_pauses_and_further_requests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with connection(monkeypatch) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
            await asyncio.sleep(1.3)
            writer.write(b"x" * 100_000)
            assert await status_of(reader) == (200, b"200000")
            await asyncio.sleep(1.3)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await status_of(reader) == (200, b"0")
            writer.write(b"GET / HTTP/1.1\r\n")
            assert (await status_of(reader))[0] == 408

    asyncio.run(run())
