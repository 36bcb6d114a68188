"""What every gRPC call goes through on both servers, Serve's and the TLS one.

These are the check of the key, the limit on the message's size, and the status of an error.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from cluster.errors import (
    ClientError,
    PayloadTooLarge,
    ServerUnavailable,
    TooManyRequests,
    client_error,
    outcome,
)
from cluster.ingress.auth import FORWARDED, Access, Authenticator, Caller
from cluster.ray_actors.ray_environment import is_haproxy_on

logger = logging.getLogger(__name__)


class CallContext(Protocol):
    """The part of a gRPC context that the methods use.

    Serve's contexts and grpc.aio's contexts both have it.
    """

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...
    def peer(self) -> str: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None: ...


class Calls:
    """Admits gRPC calls."""

    def __init__(self, authenticator: Authenticator, max_message_bytes: int) -> None:
        self._authenticator, self._max_message_bytes = authenticator, max_message_bytes

    @contextlib.contextmanager
    def admitted(self, request: Any, context: CallContext, access: Access) -> Iterator[None]:
        """Admit one call for the duration of the block, which answers it.

        An error that leaves the block becomes a ClientError and sets the call's status.
        """
        with _status(context), self._authenticator.admitted(access, caller(context)):
            num_bytes = request.ByteSize()
            if num_bytes > self._max_message_bytes:
                raise PayloadTooLarge(
                    f"the message has {num_bytes} bytes, the limit is {self._max_message_bytes}"
                )
            yield


@contextlib.contextmanager
def told_when_to_retry(context: CallContext) -> Iterator[None]:
    """Run a block that makes a stream's responses; tell the client when to retry after some errors.

    TooManyRequests and ServerUnavailable add trailing metadata. The metadata is `retry-after`, in whole
    seconds. If HAProxy connects clients directly to the replica, Serve sends metadata only when the call ends
    without an exception, so the error ends here and only sets the status. Otherwise Serve sends a status only
    for an exception, so the error is raised again.
    """
    try:
        yield
    except (TooManyRequests, ServerUnavailable) as error:
        context.set_trailing_metadata([("retry-after", str(error.retry_after_seconds))])
        if not is_haproxy_on():
            raise
        context.set_code(status_code(error))
        context.set_details(str(error))


def status_code(error: ClientError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, outcome(error).grpc)
    return code


def caller(context: CallContext) -> Caller:
    """Return what is known of the client that makes a call.

    Serve's context names the peer of Serve's proxy.
    """
    metadata = context.invocation_metadata() or ()
    shown = [value for name, value in metadata if name == "authorization"]
    return Caller(
        authorization=tuple(value if isinstance(value, str) else value.decode("latin-1") for value in shown),
        address=peer_address(context.peer()),
        is_forwarded=any(name in FORWARDED for name, _ in metadata),
    )


def peer_address(peer: str) -> str | None:
    """Return the IP address in gRPC's name of a peer, such as ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000.

    Returns None for other kinds of peers, such as Unix sockets.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    return rest.rpartition(":")[0].strip("[]") or None


@contextlib.contextmanager
def _status(context: CallContext) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = client_error(error)
        if outcome(told).status == 500:
            logger.error("a request failed", exc_info=error)
        context.set_code(status_code(told))
        context.set_details(str(told))
        raise told from None
