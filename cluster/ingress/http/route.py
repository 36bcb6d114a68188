"""What a route is: its description, what its handler gets, and what its handler returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cluster.ingress.auth import Access


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRequest:
    """What a handler gets."""

    rest: str
    """The part of the path after a route that ends with a slash; empty for other routes."""
    body: bytes
    timeout: str | None = None
    """The header X-Request-Timeout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpResponse:
    """A whole answer."""

    value: object
    """A string is sent as plain text, any other value as JSON."""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class EventStream:
    """An answer of server-sent events. An error before the first frame has its status, a later one is an event."""

    frames: AsyncGenerator[bytes, None]


Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse | EventStream]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One method of one path. The OpenAPI document is made from these fields."""

    method: str
    path: str
    """A path that ends with a slash also stands for all paths that begin with it and have a last part, a model's name."""
    access: Access = Access.CLIENT
    """Who may call it."""
    summary: str
    body: dict[str, Any] | None = None
    """JSON Schema of the request's body; None if it has none."""
    is_body_required: bool = True
    answer: dict[str, Any]
    """JSON Schema of the answer with status 200."""
    is_streamed: bool = False
    """Whether it may answer with server-sent events."""
    errors: tuple[int, ...] = ()
    """Statuses of its errors, without those that every route may have."""
    handler: Handler
