"""The errors that a client can see.

    ClientError
        InvalidRequest              the request itself is wrong; the same request will always fail
            MalformedBody           the body is not a JSON object
            UnsupportedParameter    a parameter that this server does not know or does not support
            ContextLengthExceeded   prompt and max_tokens do not fit the model's context
            PayloadTooLarge         the body is larger than this server reads
            BodyTimedOut            the body did not arrive in time
        Unauthenticated             the API key is missing or wrong
        Forbidden                   the API key is valid but does not permit this request
        ModelNotFound               this server does not serve the model
        RouteNotFound               this server does not have the path
        MethodNotAllowed            the path needs another HTTP method
        OperationFailed             an operator's operation was not done; the service is as it was
        TooManyRequests             a limit on requests under way is reached; try again later
        ServerUnavailable           not ready, draining, or an actor stayed lost for too long; try again later
        DeadlineExceeded            the request's deadline passed before the answer was complete
        RequestFailed               the server failed

`OUTCOMES` is the only table of HTTP status, OpenAI strings and gRPC code. Only `client_error` maps the errors
of actors (`actors.errors`) to this tree. All classes take positional values only and can be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.errors import ActorError, CapacityError, CheckpointError, ExchangeError, FrameError


class ClientError(Exception):
    """Root of all errors that a client can see. `param` names the field that is wrong, if there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


class InvalidRequest(ClientError):
    """The request is wrong. `message` names the field, its value and the expected value."""


class MalformedBody(InvalidRequest):
    """The body cannot be read as a JSON object."""


class UnsupportedParameter(InvalidRequest):
    """The request has a parameter that this server does not support and that would change the output."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt and tokens to generate do not fit the context. `message` names the numbers."""


class PayloadTooLarge(InvalidRequest):
    """The body is larger than this server reads. `message` names the limit."""


class BodyTimedOut(InvalidRequest):
    """The body did not arrive within the time that this server waits for it."""


class Unauthenticated(ClientError):
    """The API key is missing or wrong."""


class Forbidden(ClientError):
    """The API key is valid but does not permit this request. `message` says which key does."""


class ModelNotFound(ClientError):
    """This server does not serve the model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model: {model!r} is not served here", "model")
        self.args = (model,)


class RouteNotFound(ClientError):
    """This server does not have the path."""


class MethodNotAllowed(ClientError):
    """The path exists only for other HTTP methods. `allowed` is the value of the Allow header."""

    def __init__(self, message: str, allowed: str = "") -> None:
        super().__init__(message)
        self.args = (message, allowed)
        self.allowed = allowed


class OperationFailed(ClientError):
    """An operator's operation was not done, and the service is as it was before. `message` says why."""


class TooManyRequests(ClientError):
    """A limit on requests under way is reached.

    `retry_after_seconds` is the value of the Retry-After header.
    """

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class ServerUnavailable(ClientError):
    """No request can be answered now. `retry_after_seconds` is the value of the Retry-After header."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.args = (message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(ClientError):
    """The request's deadline passed. Tokens that were streamed before are valid."""


class RequestFailed(ClientError):
    """The server failed; the request may be right. Tokens that were streamed before are valid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an error is shown to clients."""

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
"""The outcome of every class that is raised, which is every class except the root."""


def outcome(error: ClientError) -> Outcome:
    """Return the outcome of the error's class."""
    return OUTCOMES[type(error)]


def openai_body(error: ClientError) -> dict[str, Any]:
    """Return the body of an error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""
    row = outcome(error)
    return {"error": {"message": error.message, "type": row.type, "param": error.param, "code": row.code}}


RANK_ERRORS: dict[type[ActorError], ClientError] = {
    CheckpointError: ServerUnavailable("the model cannot be loaded; the server's log says why", 60),
    CapacityError: ServerUnavailable("the model does not fit the device; the server's log says why", 60),
    FrameError: ServerUnavailable("a connection within the cluster broke; the request may be sent again"),
    ExchangeError: ServerUnavailable("an actor of the cluster is lost; the request may be sent again"),
}
"""The error that a client sees after an actor's failure, by the nearest base class. Details stay in the
server's log."""


def client_error(error: BaseException) -> ClientError:
    """Return the error that a client sees for any exception.

    A ClientError is returned as it is, and a TimeoutError becomes DeadlineExceeded.
    """
    if isinstance(error, ClientError):
        return error
    for base in type(error).__mro__:
        if base in RANK_ERRORS:
            told = RANK_ERRORS[base]
            return type(told)(*told.args)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("the deadline passed before the answer was complete")
    return RequestFailed("the server failed to answer; its log says why")
