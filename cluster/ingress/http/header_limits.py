"""Limits on the time and the size of an HTTP request's header, for a Serve that listens with uvicorn.

uvicorn limits neither: a client that sends a byte a minute keeps its connection for ever, and a client that
never ends its header fills the memory. Serve calls `install` in every process that listens, before it listens
(RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH). `install` puts a subclass of uvicorn's protocol under the name
that Serve's uvicorn looks up. HAProxy has its own limits, which `cluster.ray_actors.ray_environment` sets; it
answers a header that is too large with 400, uvicorn with this subclass with 431.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.config.environment import header_limits
from cluster.openai.encoding import encode_json

_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large"}
_CODES = {408: "header_timed_out", 431: "header_too_large"}


def install() -> list[Any]:
    """Make every uvicorn server that starts later in this process use `GuardedProtocol`.

    Returns no middlewares.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:GuardedProtocol"
    return []


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with limits on each request's header.

    The time for a header runs until its end. It starts with the connection for the first request, and with
    the request's first byte for every further request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._timeout_seconds, self._max_header_bytes = header_limits()
        self._has_begun, self._num_pending_bytes = False, 0
        self._timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_header()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_begun = False
        super().data_received(data)
        if self._timer is None or self._has_begun:
            return
        # No header began or ended in this data, so all of it belongs to a header that began earlier.
        self._num_pending_bytes += len(data)
        if self._num_pending_bytes > self._max_header_bytes:
            self._refuse(431, f"the header is larger than {self._max_header_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun, self._num_pending_bytes = True, 0
        if self._timer is None:
            self._await_header()

    def on_headers_complete(self) -> None:
        self._end_header()
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self._max_header_bytes:
            self.app = _too_large(num_bytes, self._max_header_bytes)
        super().on_headers_complete()

    def _await_header(self) -> None:
        self._timer = self.loop.call_later(
            self._timeout_seconds,
            self._refuse,
            408,
            f"the header did not arrive within {self._timeout_seconds:g} seconds",
        )

    def _end_header(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str) -> None:
        self._end_header()
        if self.transport.is_closing():
            return
        # If the answer to the previous request is still being sent, an error message would end up inside it.
        if self.cycle is None or self.cycle.response_complete:
            body = _body(status, message)
            head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
            self.transport.write(
                f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
            )
        self.transport.close()


def _too_large(num_bytes: int, max_bytes: int) -> Any:
    """Return an ASGI application that answers 431 to a request whose header is too large."""
    body = _body(431, f"the header has {num_bytes} bytes, the limit is {max_bytes}")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 431, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def _body(status: int, message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": _CODES[status]}
    return encode_json({"error": error})
