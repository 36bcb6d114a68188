"""A small ASGI application: finds the handler, reads the body, sends what it returns, and tells it of a disconnect.

Written directly against ASGI because of what it must do that frameworks leave out: every answer, the errors included,
has OpenAI's shape, and a handler is cancelled the moment its client leaves, streaming or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import unquote

from cluster.errors import (
    ClientError,
    MethodNotAllowed,
    PayloadTooLarge,
    RouteNotFound,
    ServerUnavailable,
    TooManyRequests,
    client_error,
    openai_body,
    outcome,
)
from cluster.openai.encoding import encode_json, sse_error

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_EVENTS = b"text/event-stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRequest:
    """What a handler gets."""

    rest: str
    """What follows a route that ends with a slash; empty for others."""
    body: bytes
    timeout: str | None = None
    """The header X-Request-Timeout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpResponse:
    """A whole answer."""

    value: object
    """Encoded as JSON; a text as it is."""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class EventStream:
    """An answer of server-sent events. An error before the first frame has its status, a later one is an event."""

    frames: AsyncGenerator[bytes, None]


Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse | EventStream]]
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]
"""Path -> method -> handler. A path that ends with a slash also stands for all that begin with it."""


class HttpApp:
    """The ASGI application for some routes. Never lets an exception out."""

    def __init__(self, routes: Routes, max_body_bytes: int) -> None:
        self._routes, self._max_body_bytes = routes, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            handler, rest = self._find(scope)
            body = await self._read_body(scope, receive)
        except ClientError as error:
            await _send_whole(send, _last_of_connection(error_response(error)))
            return
        except ConnectionError:
            return
        work = asyncio.ensure_future(
            self._handle(handler, HttpRequest(rest=rest, body=body, timeout=_timeout(scope)), send)
        )
        watch = asyncio.ensure_future(_until_disconnected(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _handle(self, handler: Handler, request: HttpRequest, send: Send) -> None:
        try:
            response = await handler(request)
        except Exception as error:
            response = error_response(_told(error))
        if isinstance(response, HttpResponse):
            await _send_whole(send, response)
        else:
            await _send_events(send, response.frames)

    def _find(self, scope: Scope) -> tuple[Handler, str]:
        path = unquote(scope["path"]) or "/"
        methods, rest = self._routes.get(path), ""
        if methods is None:
            prefix = next(
                (route for route in self._routes if route.endswith("/") and path.startswith(route)), None
            )
            if prefix is None or len(prefix) == len(path):
                raise RouteNotFound(f"there is no {path[:200]} here")
            methods, rest = self._routes[prefix], path[len(prefix) :]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            raise MethodNotAllowed(f"{path[:200]} wants {' or '.join(methods)}, not {scope['method'][:20]}")
        return methods[method], rest

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Raises PayloadTooLarge, as early as the header allows, and ConnectionError when the client leaves."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise PayloadTooLarge(f"the body has {int(declared)} bytes, the limit is {self._max_body_bytes}")
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise PayloadTooLarge(
                    f"the body has more than {self._max_body_bytes} bytes, which is the limit"
                )
            if not message.get("more_body", False):
                return b"".join(parts)


def _timeout(scope: Scope) -> str | None:
    value = dict(scope["headers"]).get(b"x-request-timeout")
    return None if value is None else value.decode("latin-1")


def error_response(error: ClientError) -> HttpResponse:
    """An error in OpenAI's shape, with Retry-After where trying again makes sense."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, TooManyRequests | ServerUnavailable):
        headers = ((b"retry-after", str(error.retry_after_seconds).encode()),)
    return HttpResponse(value=openai_body(error), status=outcome(error).status, headers=headers)


def _last_of_connection(response: HttpResponse) -> HttpResponse:
    """For an answer that does not wait for the body: what is left of it must not be in the next request's way."""
    return replace(response, headers=(*response.headers, (b"connection", b"close")))


def _told(error: Exception) -> ClientError:
    told = client_error(error)
    if outcome(told).status == 500:
        logger.error("a request failed", exc_info=error)
    return told


async def _send_whole(send: Send, response: HttpResponse) -> None:
    is_text = isinstance(response.value, str)
    body = response.value.encode() if isinstance(response.value, str) else encode_json(response.value)
    headers = [
        (b"content-type", b"text/plain; charset=utf-8" if is_text else _JSON),
        (b"content-length", str(len(body)).encode()),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_events(send: Send, frames: AsyncGenerator[bytes, None]) -> None:
    """The first frame is awaited before the status is sent, so that a failure until then has its own status."""
    async with contextlib.aclosing(frames):
        try:
            first = await anext(frames)
        except Exception as error:
            await _send_whole(send, error_response(_told(error)))
            return
        headers = [(b"content-type", _EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        try:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Exception as error:
            await send({"type": "http.response.body", "body": sse_error(_told(error)), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Receive, send: Send) -> None:
    """Nothing to start or stop: the ingress does that itself."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
