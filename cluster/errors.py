"""What a client can see when a request is not answered as it wished.

    ClientError
        InvalidRequest              the request itself is wrong; the same request will always fail
            MalformedBody           the body is not a JSON object
            UnsupportedParameter    a parameter that this server does not know or does not support
            ContextLengthExceeded   prompt and max_tokens do not fit the model's context
            PayloadTooLarge         the body is larger than this server reads
            BodyTimedOut            the body did not arrive in time
        Unauthenticated             the API key is missing or wrong
        Forbidden                   the API key is right, and not enough for this
        ModelNotFound               a model that this server does not serve
        RouteNotFound               a path that this server does not have
        MethodNotAllowed            a path that wants another HTTP method
        OperationFailed             what an operator asked for was not done; the service is as it was
        TooManyRequests             all places are taken; try again later
        ServerUnavailable           not ready, or draining, or an actor stayed lost for too long; try again later
        DeadlineExceeded            the client's own deadline passed before the answer was complete
        RequestFailed               the fault is the server's

`OUTCOMES` is the one table of HTTP status, OpenAI strings and gRPC code. `client_error` is the one place that maps what
a rank says (`actors.errors`) to this tree. All of them take positional values only and can be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.errors import ActorError, CapacityError, CheckpointError, ExchangeError, FrameError


class ClientError(Exception):
    """Root of everything that a client is told. `param` names the field that is to blame, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


class InvalidRequest(ClientError):
    """The request is wrong; `message` names field, value and what was expected."""


class MalformedBody(InvalidRequest):
    """The body cannot be read as a JSON object."""


class UnsupportedParameter(InvalidRequest):
    """A parameter that would change the output if this server understood it."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt and tokens to generate do not fit the context; `message` names the numbers."""


class PayloadTooLarge(InvalidRequest):
    """The body is larger than this server reads; `message` names the limit."""


class BodyTimedOut(InvalidRequest):
    """The body did not arrive within the time that this server waits for it."""


class Unauthenticated(ClientError):
    """The API key is missing or wrong."""


class Forbidden(ClientError):
    """Whoever asks is known, and may not do this; `message` says who may."""


class ModelNotFound(ClientError):
    """No such model here."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model: {model!r} is not served here", "model")
        self.args = (model,)


class RouteNotFound(ClientError):
    """No such path here."""


class MethodNotAllowed(ClientError):
    """The path exists for other HTTP methods: `allowed`, which goes into the Allow header."""

    def __init__(self, message: str, allowed: str = "") -> None:
        super().__init__(message)
        self.args = (message, allowed)
        self.allowed = allowed


class OperationFailed(ClientError):
    """What an operator asked for was not done; the service is as it was before. `message` says why."""


class TooManyRequests(ClientError):
    """All places are taken. `retry_after_seconds` goes into the Retry-After header."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class ServerUnavailable(ClientError):
    """No request can be answered at present. `retry_after_seconds` goes into the Retry-After header."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(ClientError):
    """The client's deadline passed. Tokens that were streamed before are valid."""


class RequestFailed(ClientError):
    """The server failed; the request may have been right. Tokens that were streamed before are valid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one error looks from outside."""

    status: int
    """HTTP status."""
    type: str
    """`error.type` in OpenAI's body."""
    code: str | None
    """`error.code` in OpenAI's body."""
    grpc: str
    """Name of the gRPC status code, a member of `grpc.StatusCode`."""


def _invalid(status: int, code: str | None) -> Outcome:
    return Outcome(status=status, type="invalid_request_error", code=code, grpc="INVALID_ARGUMENT")


OUTCOMES: dict[type[ClientError], Outcome] = {
    InvalidRequest: _invalid(400, "invalid_value"),
    MalformedBody: _invalid(400, "malformed_body"),
    UnsupportedParameter: _invalid(400, "unsupported_parameter"),
    ContextLengthExceeded: _invalid(400, "context_length_exceeded"),
    PayloadTooLarge: Outcome(
        status=413, type="invalid_request_error", code="payload_too_large", grpc="RESOURCE_EXHAUSTED"
    ),
    BodyTimedOut: Outcome(
        status=408, type="invalid_request_error", code="body_timed_out", grpc="DEADLINE_EXCEEDED"
    ),
    Unauthenticated: Outcome(
        status=401, type="authentication_error", code="invalid_api_key", grpc="UNAUTHENTICATED"
    ),
    Forbidden: Outcome(
        status=403, type="permission_error", code="admin_key_required", grpc="PERMISSION_DENIED"
    ),
    ModelNotFound: Outcome(
        status=404, type="invalid_request_error", code="model_not_found", grpc="NOT_FOUND"
    ),
    RouteNotFound: Outcome(
        status=404, type="invalid_request_error", code="route_not_found", grpc="UNIMPLEMENTED"
    ),
    MethodNotAllowed: Outcome(
        status=405, type="invalid_request_error", code="method_not_allowed", grpc="UNIMPLEMENTED"
    ),
    OperationFailed: Outcome(
        status=409, type="invalid_request_error", code="operation_failed", grpc="FAILED_PRECONDITION"
    ),
    TooManyRequests: Outcome(
        status=429, type="rate_limit_error", code="too_many_requests", grpc="RESOURCE_EXHAUSTED"
    ),
    ServerUnavailable: Outcome(status=503, type="server_error", code="unavailable", grpc="UNAVAILABLE"),
    DeadlineExceeded: Outcome(
        status=504, type="server_error", code="deadline_exceeded", grpc="DEADLINE_EXCEEDED"
    ),
    RequestFailed: Outcome(status=500, type="server_error", code="internal_error", grpc="INTERNAL"),
}
"""Every class that is raised; the root alone is not."""


def outcome(error: ClientError) -> Outcome:
    """The table's row of this error's class."""
    return OUTCOMES[type(error)]


def openai_body(error: ClientError) -> dict[str, Any]:
    """The body of an error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""
    row = outcome(error)
    return {"error": {"message": error.message, "type": row.type, "param": error.param, "code": row.code}}


RANK_ERRORS: dict[type[ActorError], ClientError] = {
    CheckpointError: ServerUnavailable("the model cannot be loaded; the server's log says why", 60),
    CapacityError: ServerUnavailable("the model does not fit the device; the server's log says why", 60),
    FrameError: ServerUnavailable("a connection within the cluster broke; the request may be sent again"),
    ExchangeError: ServerUnavailable("an actor of the cluster is lost; the request may be sent again"),
}
"""What a client is told of a rank's failure, by the nearest base class; the details stay in the server's log."""


def client_error(error: BaseException) -> ClientError:
    """What a client is told of any exception: a ClientError as it is, TimeoutError as a deadline that passed."""
    if isinstance(error, ClientError):
        return error
    for base in type(error).__mro__:
        if base in RANK_ERRORS:
            told = RANK_ERRORS[base]
            return type(told)(*told.args)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("the deadline passed before the answer was complete")
    return RequestFailed("the server failed to answer; its log says why")
