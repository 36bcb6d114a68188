"""Streams of every sort, their results, and the times at which their tokens arrived.

catalogue() -> bodies
read_stream(port, number, body) -> Stream
keep_open(port, bodies, num_streams, on_end): `num_streams` streams at all times
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Body: TypeAlias = dict[str, Any]

STREAM_SECONDS = 180.0
"""A stream that takes longer has failed."""
LOGPROB_TOLERANCE = 1e-3
"""The log-probabilities of a sequence that is computed again are summed in another order. Its tokens are the
same."""
_CROSSING_TOKENS = 128
"""A prompt of this length crosses the limit of the embedded model's short rope with the tokens that
follow."""


@dataclass(kw_only=True, slots=True)
class Choice:
    """One of the n answers of a stream."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: tuple[str | None, object] | None = None
    """finish_reason and stop_reason, once the answer has ended."""
    logprobs: list[float] = field(default_factory=list)

    def difference(self, other: Choice) -> str | None:
        """Return the first difference from another answer, or None."""
        for position, (mine, theirs) in enumerate(zip(self.token_ids, other.token_ids, strict=False)):
            if mine != theirs:
                return f"token {position} is {theirs}, not {mine}"
        if len(self.token_ids) != len(other.token_ids):
            return f"{len(other.token_ids)} tokens, not {len(self.token_ids)}"
        if (self.text, self.finish) != (other.text, other.finish):
            return f"{(other.text[-40:], other.finish)}, not {(self.text[-40:], self.finish)}"
        if len(self.logprobs) != len(other.logprobs):
            return f"{len(other.logprobs)} log-probabilities, not {len(self.logprobs)}"
        worst = max((abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=True)), default=0.0)
        return None if worst <= LOGPROB_TOLERANCE else f"a log-probability is off by {worst:.2g}"


@dataclass(kw_only=True, slots=True)
class Stream:
    """What a client saw of one stream."""

    number: int
    """The number of the request's body."""
    choices: dict[int, Choice] = field(default_factory=dict)
    arrivals: dict[int, list[float]] = field(default_factory=dict)
    """For each choice the times (monotonic clock) of the request and of all deltas."""
    failure: str | None = None

    def difference(self, truth: Stream) -> str | None:
        """Return the first difference from the truth, or None."""
        if self.choices.keys() != truth.choices.keys():
            return f"choices {sorted(self.choices)}, not {sorted(truth.choices)}"
        for index, choice in self.choices.items():
            difference = truth.choices[index].difference(choice)
            if difference is not None:
                return f"choice {index}: {difference}"
        return None


def catalogue(count: int, seed: int = 0) -> list[Body]:
    """Return requests of every sort in a cycle.

    The sorts are greedy, sampled, over the crossing, several choices, stop strings and log-probabilities.
    """
    dice = random.Random(seed)
    return [_body(number, dice) for number in range(count)]


async def read_stream(port: int, number: int, body: Body) -> Stream:
    """Send one request and read its stream to the end. Any error becomes its `failure`.

    Plain sockets are used, so that the client takes little time.
    """
    stream = Stream(number=number)
    try:
        await asyncio.wait_for(_read(port, body, stream), STREAM_SECONDS)
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        stream.failure = f"{type(error).__name__}: {error}"
    return stream


@contextlib.asynccontextmanager
async def keep_open(
    port: int, bodies: Sequence[Body], num_streams: int, on_end: Callable[[Stream], None]
) -> AsyncIterator[None]:
    """Keep `num_streams` streams open, with the bodies in a cycle. At the end, wait for those that run."""
    is_closing = False
    numbers = iter(range(10**9))

    async def one_after_the_other() -> None:
        while not is_closing:
            number = next(numbers) % len(bodies)
            stream = await read_stream(port, number, bodies[number])
            on_end(stream)
            if stream.failure is not None:
                await asyncio.sleep(0.5)  # One cause is not to be counted a thousand times.

    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(num_streams)]
    try:
        yield
        is_closing = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def get_json(port: int, path: str, seconds: float) -> dict[str, Any] | None:
    """Return the JSON at a path; None if the service does not answer with 200 within these seconds."""
    try:
        status, content = await asyncio.wait_for(_get(port, path), seconds)
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        return None
    value: dict[str, Any] | None = json.loads(content) if status == 200 else None
    return value


async def all_of(port: int, bodies: Sequence[Body], at_once: int) -> list[Stream]:
    """Run each of the bodies once, `at_once` at the same time."""
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> Stream:
        async with room:
            return await read_stream(port, number, bodies[number])

    return await asyncio.gather(*(one(number) for number in range(len(bodies))))


def _body(number: int, dice: random.Random) -> Body:
    """Token ids below 300 are letters and short pieces of words in the embedded model's vocabulary."""
    num_tokens = dice.choice((5, 20, 90))
    fixed: Body = {"ignore_eos": True, "return_token_ids": True, "stream": True, "max_tokens": 150}
    sampled: Body = {"temperature": 1.0, "top_p": 0.95, "seed": number}
    match number % 6:
        case 0:
            fixed |= {"temperature": 0}
        case 1:
            fixed |= {**sampled, "frequency_penalty": 0.3, "max_tokens": 250}
        case 2:
            num_tokens = dice.randrange(_CROSSING_TOKENS - 60, _CROSSING_TOKENS - 5)
            fixed |= {"temperature": 0} if dice.random() < 0.5 else sampled
        case 3:
            fixed |= {**sampled, "n": 2 + number % 2, "max_tokens": 100}
        case 4:
            fixed |= {**sampled, "stop": ["QX", "zq7"], "temperature": 1.5}
        case _:
            fixed |= {"temperature": 0, "logprobs": 2}
    return {"prompt": [dice.randrange(5, 300) for _ in range(num_tokens)], **fixed}


async def _read(port: int, body: Body, stream: Stream) -> None:
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        began = time.monotonic()
        stream.arrivals = {index: [began] for index in range(body.get("n", 1))}
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode()
        if " 200 " not in status:
            raise ValueError(f"{status}: {(await reader.read(2000)).decode(errors='replace')}")
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                _check_end(stream)
                return
            if line.startswith(b"data: "):
                _take(stream, json.loads(line[6:]))
        raise ValueError("the stream broke off")
    finally:
        writer.transport.abort()


async def _get(port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head.lower())
        return int(head.split()[1]), await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.transport.abort()


def _take(stream: Stream, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise ValueError(f"the stream ended with {chunk['error']}")
    now = time.monotonic()
    for part in chunk["choices"]:
        stream.arrivals[part["index"]].append(now)
        choice = stream.choices.setdefault(part["index"], Choice())
        if choice.finish is not None:
            raise ValueError(f"choice {part['index']} went on after its end")
        choice.token_ids += part["token_ids"]
        choice.text += part["text"]
        choice.logprobs += (part.get("logprobs") or {}).get("token_logprobs", [])
        if part["finish_reason"] is not None:
            choice.finish = (part["finish_reason"], part.get("stop_reason"))


def _check_end(stream: Stream) -> None:
    if len(stream.choices) < len(stream.arrivals) or any(c.finish is None for c in stream.choices.values()):
        raise ValueError("the stream said that it was done before it was")
