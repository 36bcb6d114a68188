"""The bodies of admin requests over HTTP; gRPC's messages are turned into the same bodies. Pure."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from cluster.config.request_limits import Limits
from cluster.kinds.objects import Object
from cluster.kinds.scalars import Number
from cluster.supervisor.operations.messages import OPERATIONS, OperationMessage

_LIMITS = Limits()
"""The default limits. No bound in these bodies depends on them."""
_Operation = TypeVar("_Operation", bound=OperationMessage)


class WatchFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of gRPC's WatchStatus."""

    max_silence_seconds: Annotated[
        float, Number(1, 3600), "A status is sent after this time even if nothing has changed."
    ] = 10.0


WATCH = Object(WatchFields)
OPERATION_BODIES: dict[type[OperationMessage], Object[Any]] = {
    operation: Object(operation) for operation in OPERATIONS
}


def parse_operation(operation: type[_Operation], body: object) -> _Operation:
    """Return the operation that a body describes. Raises InvalidRequest."""
    message: _Operation = OPERATION_BODIES[operation].read("", body, _LIMITS)
    return message


def parse_watch(body: object) -> float:
    """Return the longest time between two messages of a watch, in seconds. Raises InvalidRequest."""
    return WATCH.read("", body, _LIMITS).max_silence_seconds
