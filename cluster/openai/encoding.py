"""Encodes and decodes JSON, and encodes server-sent events."""

from __future__ import annotations

import msgspec

from cluster.errors import ClientError, MalformedBody, openai_body

_ENCODER = msgspec.json.Encoder()
SSE_DONE = b"data: [DONE]\n\n"
"""The last frame of every stream that ends without an error."""


def decode_body(body: bytes) -> object:
    """Return the JSON value in a request's body. Raises MalformedBody, which says where the JSON is wrong."""
    if not body.strip():
        raise MalformedBody("the body is empty, expected a JSON object")
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise MalformedBody("the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error


def encode_json(value: object) -> bytes:
    return _ENCODER.encode(value)


def sse_frame(value: object) -> bytes:
    """Return one event with a JSON value."""
    return b"data: " + _ENCODER.encode(value) + b"\n\n"


def sse_error(error: ClientError) -> bytes:
    """Return the event that ends a stream with an error; no [DONE] follows it."""
    return sse_frame(openai_body(error))
