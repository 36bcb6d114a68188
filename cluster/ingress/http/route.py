"""The types of a route: its description, the request that its handler gets and the answer that it returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cluster.ingress.auth import Access


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRequest:
    """A request as its handler gets it."""

    rest: str
    """For a route whose path ends with a slash, the part of the request's path after it; otherwise empty."""
    body: bytes
    timeout: str | None = None
    """The value of the header X-Request-Timeout, in seconds; None if the header is absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpResponse:
    """An answer that is sent as a whole."""

    value: object
    """A string is sent as plain text, any other value as JSON."""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class EventStream:
    """An answer of server-sent events.

    An error before the first frame is sent with its own status; a later error is sent as an event.
    """

    frames: AsyncGenerator[bytes, None]


Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse | EventStream]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One method of one path. The OpenAPI document is made from these fields."""

    method: str
    path: str
    """The path. If it ends with a slash, it matches every longer path that begins with it.

    The rest of such a path is the name of a model.
    """
    access: Access = Access.CLIENT
    """Who may call the route."""
    summary: str
    body: dict[str, Any] | None = None
    """JSON Schema of the request's body; None if the route takes no body."""
    is_body_required: bool = True
    answer: dict[str, Any]
    """JSON Schema of the answer with status 200."""
    is_streamed: bool = False
    """Whether the route may answer with server-sent events."""
    errors: tuple[int, ...] = ()
    """Statuses of the handler's errors, without those that any route may have."""
    handler: Handler
