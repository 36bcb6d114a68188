"""Raw bytes at the HTTP port: broken request lines, headers, chunks, lengths and JSON."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections import Counter

import pytest

from tests.end_to_end.running import Running
from tests.fuzz.unharmed import unharmed

pytestmark = pytest.mark.timeout(1800)
AT_ONCE = 32
QUIET_SECONDS = 0.4
"""An input without an answer after this time counts as one for which the server waits for more."""

METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"G\x00T", b"", b"POST" * 50]
TARGETS = [
    *(b"/v1/completions", b"/v1/chat/completions", b"/tokenize", b"/detokenize", b"/health", b"/v1/models/x"),
    *(
        b"/",
        b"*",
        b"",
        b"//",
        b"/%00",
        b"/%ff%fe",
        b"/../../etc/passwd",
        b"http://[::1/",
        b"/\xff",
        b"/" + b"a" * 9000,
    ),
    *(b"/v1/models/%F0%9F", b"/tokenize?x=" + b"y" * 300, b"/health#x", b"/-/nothing", b"/%2e%2e/health"),
]
VERSIONS = [b"HTTP/1.1"] * 6 + [
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/9.9",
    b"http/1.1",
    b"",
    b"PRI * HTTP/2.0",
]
HEADERS = [
    *(
        b"Content-Length: -1",
        b"Content-Length: 5, 6",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: x",
    ),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: \x0bchunked"),
    *(
        b"Expect: 100-continue",
        b"Expect: nothing",
        b"Connection: close",
        b"Connection: upgrade",
        b"Upgrade: websocket",
    ),
    *(
        b"Host: a\r\nHost: b",
        b": empty",
        b"No-Colon",
        b" folded: x",
        b"X: " + b"y" * 5000,
        b"X: \x00",
        b"X\x01: y",
    ),
    *(
        b"Content-Type: application/json",
        b"Content-Encoding: gzip",
        b"Authorization: Bearer \xff\xfe",
        b"Accept: \r",
    ),
    *(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Cookie: " + b"a=b; " * 200, b"Range: bytes=0-"),
]
BODIES = [
    *(
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b'"',
        b"\x00",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"a":' * 2000,
        b"1e999",
        b"{" * 100,
    ),
    *(b'{"prompt": "a", "max_tokens": 2}', b'{"prompt": "a", "max_tokens": 2, "stream": true}'),
    *(
        b'{"prompt": "\\ud800", "max_tokens": 2}',
        b'{"prompt": [1, 2], "max_tokens": 1e400}',
        b'{"tokens": [99999999]}',
    ),
    *(
        b'{"messages": [{"role": "user", "content": "\\u0000"}], "max_tokens": 1}',
        b'{"prompt": "a", "prompt": "b"}',
    ),
    *(b'{"tokens": [1, 2, -0]}', b'{"prompt": ' + b"1" * 5000 + b"}", b'{"n": NaN}', b"\xef\xbb\xbf{}"),
]


SOUND = [
    (b"/v1/completions", b'{"prompt": "a", "max_tokens": 2}'),
    (
        b"/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": true}',
    ),
    (b"/detokenize", b'{"tokens": [1, 2]}'),
]


def make_input(dice: random.Random) -> bytes:
    """Return a request that may be broken in several ways."""
    if dice.random() < 0.1:
        return dice.randbytes(dice.randrange(1, 400))
    if dice.random() < 0.5:
        method, version = b"POST", b"HTTP/1.1"
        target, body = dice.choice(SOUND)
    else:
        method, version = dice.choice(METHODS[:2] * 4 + METHODS), dice.choice(VERSIONS)
        target, body = dice.choice(TARGETS), dice.choice(BODIES)
    lines = [b" ".join((method, target, version))]
    lines += [b"Host: localhost"] * (dice.random() < 0.9)
    lines += dice.sample(HEADERS, dice.choice([0, 0, 1, 2]))
    kind = dice.random()
    if kind < 0.5:
        lines.append(b"Content-Length: %d" % max(0, len(body) + dice.choice([0, 0, 0, 0, -1, 1, 7])))
    elif kind < 0.8:
        lines.append(b"Transfer-Encoding: chunked")
        body = _chunked(body, dice)
    request = dice.choice([b"\r\n"] * 8 + [b"\n", b"\r"]).join(lines) + b"\r\n\r\n" + body
    return _mutated(request, dice) if dice.random() < 0.4 else request


def _chunked(body: bytes, dice: random.Random) -> bytes:
    size = dice.choice(
        [b"%x" % len(body)] * 4 + [b"-1", b"g", b"ffffffffffffffff", b"", b"%x;ext=" % len(body), b"0x1"]
    )
    ending = dice.choice(
        [b"\r\n0\r\n\r\n"] * 4 + [b"\r\n0\r\nTrailer: x\r\n\r\n", b"", b"\n0\n\n", b"\r\n00000\r\nx"]
    )
    return size + b"\r\n" + body + ending


def _mutated(request: bytes, dice: random.Random) -> bytes:
    content = bytearray(request)
    for _ in range(dice.randrange(1, 5)):
        place = dice.randrange(len(content) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            content[place : place + 1] = dice.randbytes(1)
        elif kind == 1:
            del content[place : place + dice.randrange(1, 20)]
        elif kind == 2:
            content[place:place] = dice.randbytes(dice.randrange(1, 10))
        else:
            content += request[: dice.randrange(len(request) + 1)]
    return bytes(content)


async def statuses_of(port: int, content: bytes, ends: bool) -> list[int]:
    """Return the statuses of all answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        with contextlib.suppress(OSError):
            writer.write(content)
            await writer.drain()
            if ends:
                writer.write_eof()
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            while part := await asyncio.wait_for(reader.read(65536), 20 if received else QUIET_SECONDS):
                received += part
                if not ends:
                    # Nothing more comes on a connection that is kept alive.
                    break
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return [int(status) for status in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3}) ", received)]


async def attack(port: int, num_inputs: int, seed: int) -> Counter[int]:
    dice, places = random.Random(seed), asyncio.Semaphore(AT_ONCE)
    answers: Counter[int] = Counter()

    async def one(content: bytes, ends: bool) -> None:
        async with places:
            statuses = await statuses_of(port, content, ends)
        answers.update(statuses or [0])
        assert not any(status >= 500 for status in statuses), (statuses, content)

    await asyncio.gather(*(one(make_input(dice), dice.random() < 0.3) for _ in range(num_inputs)))
    return answers


@pytest.mark.parametrize("num_inputs", [500, pytest.param(12000, marks=pytest.mark.slow)])
def test_no_bytes_harm_the_service(service: Running, num_inputs: int) -> None:
    with unharmed(service):
        answers = asyncio.run(attack(service.port, num_inputs, seed=num_inputs))
    assert answers[200] > 10 and answers[400] > 20, answers


def test_a_header_that_does_not_end_is_given_up_after_ten_seconds(service: Running) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        answer = connection.recv(4096)
        assert answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.0 408 "))
        assert 8 < time.monotonic() - began < 15


def test_a_header_that_is_too_large_is_refused(service: Running) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 18000 + b"\r\n\r\n")
        assert connection.recv(4096)[9:12] in (b"400", b"431")
