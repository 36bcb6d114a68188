"""gRPC's way of saying when to come again: `retry-after`, in whole seconds, in the trailing metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from cluster.config.environment import is_haproxy_on
from cluster.errors import ServerUnavailable, TooManyRequests, outcome
from cluster.ingress.grpc.calls import CallContext


@contextlib.contextmanager
def told_when_to_retry(context: CallContext) -> Iterator[None]:
    """Around what makes the responses of a stream: gives TooManyRequests and ServerUnavailable their metadata.

    Where HAProxy leads straight to the replica, Serve sends the metadata of calls that end without an exception alone, and
    the error goes no further than this. Elsewhere it sends the status of an exception alone.
    """
    try:
        yield
    except (TooManyRequests, ServerUnavailable) as error:
        context.set_trailing_metadata([("retry-after", str(error.retry_after_seconds))])
        if not is_haproxy_on():
            raise
        context.set_code(getattr(grpc.StatusCode, outcome(error).grpc))
        context.set_details(str(error))
