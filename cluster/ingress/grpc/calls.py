"""What every gRPC call goes through on either server: the check of its key, the size limit, the status of an error."""

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
    """The part of a gRPC context that the methods use: Serve's own and grpc.aio's both have it."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...
    def peer(self) -> str: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None: ...


class Calls:
    """Lets gRPC calls in."""

    def __init__(self, authenticator: Authenticator, max_message_bytes: int) -> None:
        self._authenticator, self._max_message_bytes = authenticator, max_message_bytes

    @contextlib.contextmanager
    def admitted(self, request: Any, context: CallContext, access: Access) -> Iterator[None]:
        """A block in which one call is answered. An error that leaves the block becomes a ClientError and the call's status."""
        with _status(context), self._authenticator.admitted(access, caller(context)):
            num_bytes = request.ByteSize()
            if num_bytes > self._max_message_bytes:
                raise PayloadTooLarge(
                    f"the message has {num_bytes} bytes, the limit is {self._max_message_bytes}"
                )
            yield


@contextlib.contextmanager
def told_when_to_retry(context: CallContext) -> Iterator[None]:
    """A block that makes the responses of a stream. TooManyRequests and ServerUnavailable get trailing metadata.

    The metadata is `retry-after`, in whole seconds. Where HAProxy leads straight to the replica, Serve sends metadata only
    if the call ends without an exception, so the error ends here. Elsewhere Serve sends a status only for an exception.
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
    """The gRPC status of an error."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, outcome(error).grpc)
    return code


def caller(context: CallContext) -> Caller:
    """Who makes a call. Serve's context says who is connected to its proxy."""
    metadata = context.invocation_metadata() or ()
    shown = [value for name, value in metadata if name == "authorization"]
    return Caller(
        authorization=tuple(value if isinstance(value, str) else value.decode("latin-1") for value in shown),
        address=peer_address(context.peer()),
        is_forwarded=any(name in FORWARDED for name, _ in metadata),
    )


def peer_address(peer: str) -> str | None:
    """The IP address in gRPC's name of a peer, such as ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000."""
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
