"""The bodies of admin requests, as HTTP has them; gRPC's messages become the same. Pure."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from cluster.openai.kinds.objects import Object
from cluster.openai.kinds.scalars import Number
from cluster.openai.limits import Limits
from cluster.supervisor.operations.messages import OPERATIONS, OperationMessage

_LIMITS = Limits()
"""No bound of these bodies depends on it."""
_Operation = TypeVar("_Operation", bound=OperationMessage)


class WatchFields(msgspec.Struct, frozen=True, kw_only=True):
    """What gRPC's WatchStatus is asked."""

    max_silence_seconds: Annotated[
        float, Number(1, 3600), "A status is sent after this time even if nothing has changed."
    ] = 10.0


WATCH = Object(WatchFields)
OPERATION_BODIES: dict[type[OperationMessage], Object[Any]] = {
    operation: Object(operation) for operation in OPERATIONS
}


def parse_operation(operation: type[_Operation], body: object) -> _Operation:
    """The message that a body makes. Raises InvalidRequest."""
    message: _Operation = OPERATION_BODIES[operation].read("", body, _LIMITS)
    return message


def parse_silence(body: object) -> float:
    """How long a watcher is to hear nothing at most, in seconds. Raises InvalidRequest."""
    return WATCH.read("", body, _LIMITS).max_silence_seconds
