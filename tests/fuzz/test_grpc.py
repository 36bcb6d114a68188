"""gRPC messages with random field values, and random bytes in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from protos import serving_pb2
from tests.end_to_end.running import Running
from tests.fuzz.unharmed import unharmed

pytestmark = pytest.mark.timeout(1800)
METHODS: dict[str, tuple[Any, bool]] = {
    "/phimoe.v1.Serving/Generate": (serving_pb2.GenerateRequest, True),
    "/phimoe.v1.Serving/Chat": (serving_pb2.ChatRequest, True),
    "/phimoe.v1.Serving/Tokenize": (serving_pb2.TokenizeRequest, False),
    "/phimoe.v1.Serving/Detokenize": (serving_pb2.DetokenizeRequest, False),
    "/phimoe.v1.Serving/ModelInfo": (serving_pb2.ModelInfoRequest, False),
    "/grpc.health.v1.Health/Check": (health_pb2.HealthCheckRequest, False),
    "/grpc.health.v1.Health/List": (health_pb2.HealthListRequest, False),
}
ANSWERS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
MAX_TOKENS = 4
DEPTH = 4

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", "user", "assistant", "system", "Solve 2x + 3 = 7", "phimoe-tiny"]
)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(0, 2) | st.floats(),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-2, 50) | st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 20) | st.integers(0, 5000) | st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
}


def messages(kind: Any, depth: int = DEPTH) -> st.SearchStrategy[Message]:
    """Return a strategy for messages with any values, in which any field may be unset."""
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None and not depth:
            continue
        fields[field.name] = _values(kind, field, depth)
    made: st.SearchStrategy[Message] = st.fixed_dictionaries({}, optional=fields).map(
        lambda values: _make(kind, values)
    )
    return made


def _values(kind: Any, field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        parts = field.message_type.fields_by_name
        return st.dictionaries(SCALARS[parts["key"].cpp_type], SCALARS[parts["value"].cpp_type], max_size=4)
    if field.message_type is not None:
        one = messages(field.message_type._concrete_class, depth - 1)
    else:
        one = SCALARS[field.cpp_type]
    return st.lists(one, max_size=4) if field.is_repeated else one


def _make(kind: Any, values: dict[str, Any]) -> Message:
    message: Message = kind(**values)
    return message


def cheap(message: Any) -> bytes:
    """Return the message as bytes, changed so that a valid request generates few tokens."""
    if isinstance(message, serving_pb2.GenerateRequest | serving_pb2.ChatRequest):
        asked = message.sampling.max_tokens if message.sampling.HasField("max_tokens") else MAX_TOKENS
        message.sampling.max_tokens = min(asked, MAX_TOKENS)
    encoded: bytes = message.SerializeToString()
    return encoded


def broken(kind: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy for bytes that are no message, or a message of changed content."""
    cut = st.tuples(messages(kind).map(cheap), st.integers(0, 60), st.binary(max_size=6))
    return st.binary(max_size=60) | cut.map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )


def is_readable(kind: Any, content: bytes) -> bool:
    try:
        kind.FromString(content)
    except DecodeError:
        return False
    return True


def call(channel: grpc.Channel, method: str, content: bytes, is_streamed: bool) -> tuple[str, str]:
    """Make one call; return the name of its status and its details."""
    try:
        if is_streamed:
            for _ in channel.unary_stream(method)(content, timeout=60):
                pass
        else:
            channel.unary_unary(method)(content, timeout=60)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def attack(
    service: Running, method: str, contents: st.SearchStrategy[bytes], num_inputs: int
) -> Counter[str]:
    kind, is_streamed = METHODS[method]
    statuses: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:

        @settings(
            max_examples=num_inputs,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(contents)
        def one(content: bytes) -> None:
            status, details = call(channel, method, content, is_streamed)
            statuses[status] += 1
            # Serve or gRPC itself answers what protobuf cannot read, before any method is called.
            is_unread = status in ("INTERNAL", "UNKNOWN") and not is_readable(kind, content)
            assert status in ANSWERS or is_unread, (status, details, content)

        one()
    return statuses


def _few_tokens(kind: Any) -> Callable[[bytes], bytes]:
    """Return a function that shortens the output of random bytes that happen to be a valid request."""
    return lambda content: cheap(kind.FromString(content)) if is_readable(kind, content) else content


@pytest.mark.parametrize("num_inputs", [350, pytest.param(7000, marks=pytest.mark.slow)])
def test_no_message_harms_the_service(service: Running, num_inputs: int) -> None:
    statuses: Counter[str] = Counter()
    with unharmed(service):
        for method, (kind, _) in METHODS.items():
            share = -(-num_inputs // (2 * len(METHODS)))
            statuses += attack(service, method, messages(kind).map(cheap), share)
            statuses += attack(service, method, broken(kind).map(_few_tokens(kind)), share)
    assert statuses["OK"] > 20 and statuses["INVALID_ARGUMENT"] > 20, statuses
    # A message without fields has only one value, and hypothesis does not repeat a value.
    assert statuses.total() >= num_inputs * 0.7, statuses
