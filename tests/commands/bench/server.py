"""A small OpenAI-compatible server whose tokens come at times that a test sets, in a thread of the test's
process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """How the server answers; a test may change it between requests."""

    first_seconds: float = 0.0
    """Time from a request's arrival to its first token."""
    gap_seconds: float = 0.0
    """Time from one chunk to the next."""
    tokens_per_chunk: int = 1
    counts_continuously: bool = True
    """Whether `continuous_usage_stats` is obeyed."""
    fails: frozenset[int] = frozenset()
    """Numbers (from 0) of the generation requests that are answered with 500."""
    breaks: frozenset[int] = frozenset()
    """Numbers of the requests whose stream ends after its first chunk."""
    reports_error: frozenset[int] = frozenset()
    """Numbers of the requests whose stream carries an error event."""
    ends_after: int | None = None
    """Largest number of tokens of an answer, even if the request asks for more."""
    words: tuple[str, ...] = ()
    """Tokens of a reply; if empty, every token is "x"."""
    limits: dict[str, Any] = field(default_factory=dict)
    """Further fields of the model's card."""
    props: dict[str, Any] | None = None
    """The answer of /props, as llama.cpp has it; None for a server without that route."""
    vocab: int | None = None
    """A prompt with an id of this value or above is refused."""
    context: int | None = None
    """A prompt is refused if it is longer than this together with its answer."""
    keep_alive_seconds: int = 5
    """Time after which an idle connection is closed without notice. It is read when the server starts."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A running server."""

    url: str
    behaviour: Behaviour
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """The body of each generation request."""
    arrivals: list[float] = field(default_factory=list)
    """When each request came (`perf_counter`)."""
    most_at_once: int = 0
    num_connections: set[int] = field(default_factory=set)
    """Client ports that were seen."""


@contextlib.contextmanager
def serving(behaviour: Behaviour | None = None, model: str = "small") -> Iterator[Running]:
    """Run the server on a free loopback port for the length of the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        running = Running(url=url, behaviour=behaviour or Behaviour())
        config = uvicorn.Config(
            _app(running, model),
            log_level="warning",
            ws="none",
            lifespan="off",
            timeout_keep_alive=running.behaviour.keep_alive_seconds,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield running
        finally:
            server.should_exit = server.force_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive(), "the server's thread did not end"


def _app(running: Running, model: str) -> Starlette:
    num_active = 0

    async def models(_: Request) -> Response:
        card = {"id": model, "object": "model", **running.behaviour.limits}
        return JSONResponse({"object": "list", "data": [card]})

    async def props(_: Request) -> Response:
        return JSONResponse(running.behaviour.props, status_code=200 if running.behaviour.props else 404)

    async def generate(request: Request) -> Response:
        nonlocal num_active
        number = len(running.bodies)
        body = await request.json()
        running.bodies.append(body)
        running.arrivals.append(time.perf_counter())
        assert request.client is not None
        running.num_connections.add(request.client.port)
        if number in running.behaviour.fails:
            return JSONResponse({"error": {"message": "made to fail"}}, status_code=500)
        if refusal := _refusal(running.behaviour, body):
            return JSONResponse({"error": {"message": refusal}}, status_code=400)
        num_active += 1
        running.most_at_once = max(running.most_at_once, num_active)

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal num_active
            try:
                async for chunk in _chunks(running.behaviour, body, number, "chat" in request.url.path):
                    yield chunk
            finally:
                num_active -= 1

        if body.get("stream"):
            return StreamingResponse(chunks(), media_type="text/event-stream")
        async for _ in chunks():
            pass
        count = _num_tokens(running.behaviour, body)
        return JSONResponse({"choices": [{"text": "x" * count}], "usage": _usage(body, count)})

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/props", props),
            Route("/v1/completions", generate, methods=["POST"]),
            Route("/v1/chat/completions", generate, methods=["POST"]),
        ]
    )


def _refusal(behaviour: Behaviour, body: dict[str, Any]) -> str | None:
    prompt = body.get("prompt", ())
    if behaviour.vocab is not None and max(prompt) >= behaviour.vocab:
        return f"prompt: {max(prompt)} is not below {behaviour.vocab}"
    if behaviour.context is not None and len(prompt) + body["max_tokens"] > behaviour.context:
        return f"prompt: {len(prompt)} tokens leave no room in {behaviour.context}"
    return None


async def _chunks(
    behaviour: Behaviour, body: dict[str, Any], number: int, is_chat: bool
) -> AsyncIterator[bytes]:
    options = body.get("stream_options") or {}
    counts = behaviour.counts_continuously and options.get("continuous_usage_stats")
    total = _num_tokens(behaviour, body)
    if is_chat:
        yield _event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    await asyncio.sleep(behaviour.first_seconds)
    done = 0
    while done < total:
        fresh = min(behaviour.tokens_per_chunk, total - done)
        words = behaviour.words or ("x",) * total
        text = "".join(words[done : done + fresh])
        done += fresh
        choice = {"index": 0, "delta": {"content": text}} if is_chat else {"index": 0, "text": text}
        usage = {"usage": _usage(body, done)} if counts else {}
        if number in behaviour.reports_error:
            yield _event({"error": {"message": "out of luck"}})
            return
        yield _event({"choices": [choice], **usage})
        if number in behaviour.breaks:
            return
        if done < total:
            await asyncio.sleep(behaviour.gap_seconds)
    if options.get("include_usage"):
        yield _event({"choices": [], "usage": _usage(body, done)})
    yield b"data: [DONE]\n\n"


def _num_tokens(behaviour: Behaviour, body: dict[str, Any]) -> int:
    count = len(behaviour.words) or body.get("max_tokens", 8)
    return count if behaviour.ends_after is None else min(count, behaviour.ends_after)


def _usage(body: dict[str, Any], count: int) -> dict[str, int]:
    prompt = body["prompt"] if "prompt" in body else body["messages"]
    return {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
