"""A small ASGI application: it finds the handler, reads the body, runs the handler and sends what it returns.

    scope -> route -> authenticator -> body -> handler -> HttpResponse or EventStream

It is written directly against ASGI because frameworks leave out three things that are needed here. Every
answer, errors included, has OpenAI's shape. A handler is cancelled at once when its client leaves, whether it
streams or not. No body is read before the authenticator has admitted the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import unquote

from cluster.errors import (
    BodyTimedOut,
    ClientError,
    MethodNotAllowed,
    PayloadTooLarge,
    RouteNotFound,
    ServerUnavailable,
    TooManyRequests,
    Unauthenticated,
    client_error,
    openai_body,
    outcome,
)
from cluster.ingress.auth import FORWARDED, Authenticator, Caller
from cluster.ingress.http.route import Handler, HttpRequest, HttpResponse, Route
from cluster.openai.encoding import encode_json, sse_error
from cluster.timeouts import within

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_EVENTS = b"text/event-stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyLimits:
    """Limits of an HTTP body."""

    max_bytes: int
    timeout_seconds: float
    """The longest time from the end of the header to the end of the body."""


class HttpApp:
    """The ASGI application of the given routes. No exception leaves it."""

    def __init__(self, routes: Iterable[Route], authenticator: Authenticator, limits: BodyLimits) -> None:
        self._authenticator, self._limits = authenticator, limits
        self._routes: dict[str, dict[str, Route]] = {}
        """Path -> method -> route."""
        for route in routes:
            self._routes.setdefault(route.path, {})[route.method] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            route, rest = self._find(scope)
            with self._authenticator.admitted(route.access, _caller(scope)):
                body = await self._read_body(scope, receive)
                request = HttpRequest(rest=rest, body=body, timeout=_timeout(scope))
                await self._run(route.handler, request, receive, send)
        except ClientError as error:
            await _send_whole(send, _last_of_connection(error_response(error)))
        except ConnectionError:
            return

    async def _run(self, handler: Handler, request: HttpRequest, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._handle(handler, request, send))
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

    def _find(self, scope: Scope) -> tuple[Route, str]:
        path = unquote(scope["path"]) or "/"
        methods, rest = self._routes.get(path), ""
        if methods is None:
            prefix = next(
                (known for known in self._routes if known.endswith("/") and path.startswith(known)), None
            )
            if prefix is None or len(prefix) == len(path):
                raise RouteNotFound(f"there is no {path[:200]} here")
            methods, rest = self._routes[prefix], path[len(prefix) :]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            raise MethodNotAllowed(
                f"{path[:200]} wants {' or '.join(methods)}, not {scope['method'][:20]}", ", ".join(methods)
            )
        return methods[method], rest

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body.

        Raises PayloadTooLarge (before reading, if the header already says so), BodyTimedOut, or
        ConnectionError if the client leaves.
        """
        max_bytes, timeout_seconds = self._limits.max_bytes, self._limits.timeout_seconds
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            raise PayloadTooLarge(f"the body has {declared[:20].decode()} bytes, the limit is {max_bytes}")
        try:
            return await within(timeout_seconds, _body(receive, max_bytes))
        except asyncio.TimeoutError:
            raise BodyTimedOut(f"the body did not arrive within {timeout_seconds:g} seconds") from None


async def _body(receive: Receive, max_bytes: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise PayloadTooLarge(f"the body has more than {max_bytes} bytes, which is the limit")
        if not message.get("more_body", False):
            return b"".join(parts)


def _caller(scope: Scope) -> Caller:
    headers = scope["headers"]
    return Caller(
        authorization=tuple(value.decode("latin-1") for name, value in headers if name == b"authorization"),
        address=scope["client"][0] if scope.get("client") else None,
        is_from_page=any(name == b"origin" for name, _ in headers),
        is_forwarded=any(name.decode("latin-1") in FORWARDED for name, _ in headers),
    )


def _timeout(scope: Scope) -> str | None:
    value = dict(scope["headers"]).get(b"x-request-timeout")
    return None if value is None else value.decode("latin-1")


def error_response(error: ClientError) -> HttpResponse:
    """Return an error in OpenAI's shape, with the header that its status requires."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, TooManyRequests | ServerUnavailable):
        headers = ((b"retry-after", str(error.retry_after_seconds).encode()),)
    elif isinstance(error, Unauthenticated):
        headers = ((b"www-authenticate", b"Bearer"),)
    elif isinstance(error, MethodNotAllowed):
        headers = ((b"allow", error.allowed.encode()),)
    return HttpResponse(value=openai_body(error), status=outcome(error).status, headers=headers)


def _last_of_connection(response: HttpResponse) -> HttpResponse:
    """Return the answer with a header that closes the connection.

    An answer that is sent before the body has been read needs this: the rest of the body would otherwise be
    taken for the next request.
    """
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
    """Send the frames.

    The first one is awaited before the status, so that an earlier failure has its own status.
    """
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
    """Confirm start-up and shutdown.

    There is nothing to do for them: the ingress replica starts its own parts.
    """
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
