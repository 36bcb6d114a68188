"""The served OpenAPI document says what the routes and the parsers do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest, UnsupportedParameter
from cluster.ingress.admin_bodies import OPERATION_BODIES, parse_operation
from cluster.ingress.auth import Access
from cluster.ingress.http.openapi.bodies import tokenize_body
from cluster.ingress.http.routes import routes
from cluster.kinds.kind import bound
from cluster.kinds.objects import Object
from cluster.kinds.scalars import Integer, Number
from cluster.openai import tokenize
from cluster.openai.fields.bodies import CHAT, COMPLETION, DETOKENIZE, ECHO, TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.parsing import parse
from cluster.supervisor.operations.messages import Drain, Restart, Scale
from tests.support.local_ingress import open_ingress, with_keys

LIMITS = Limits(max_stop_chars=8, max_prompt_chars=100, max_request_id_chars=8)
MESSAGES = [{"role": "user", "content": "hi"}]
Case = tuple[dict[str, Any], Callable[[object], object], dict[str, Any]]
CASES: dict[str, Case] = {
    "completion": (
        ECHO.schema(LIMITS),
        lambda body: parse.parse_completion(body, LIMITS),
        {"prompt": "hi"},
    ),
    "chat": (CHAT.schema(LIMITS), lambda body: parse.parse_chat(body, LIMITS), {"messages": MESSAGES}),
    "tokenize": (
        tokenize_body(LIMITS),
        lambda body: tokenize.parse_tokenize(body, LIMITS),
        {"messages": MESSAGES},
    ),
    "detokenize": (
        DETOKENIZE.schema(LIMITS),
        lambda body: tokenize.parse_detokenize(body, LIMITS),
        {"tokens": [1]},
    ),
    "scale": (
        OPERATION_BODIES[Scale].schema(LIMITS),
        lambda body: parse_operation(Scale, body),
        {"expert_actors": 1},
    ),
    "drain": (OPERATION_BODIES[Drain].schema(LIMITS), lambda body: parse_operation(Drain, body), {}),
    "nothing": (OPERATION_BODIES[Restart].schema(LIMITS), lambda body: parse_operation(Restart, body), {}),
}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 21, 129, 0.5, 2.5, 101, -101, 10.5, 3601, 2**31, 2**64, -(2**64)),
    *(
        "",
        "a",
        " a",
        "stop",
        "text",
        "x" * 600,
        "ä",
        [],
        [1],
        [-1],
        ["a"],
        [""],
        [[1]],
        [[]],
        [{}],
        [2**31],
        ["a"] * 40,
    ),
    *(
        {},
        {"a": 1},
        {"1": 1},
        {"1": 101},
        {"1": "a"},
        {"type": "text"},
        {"include_usage": True},
        {"include_usage": 1},
    ),
    *([{"role": "user"}], [{"role": "nobody", "content": "a"}], [{"role": "user", "content": []}]),
    *([{"role": "user", "content": "a", "x": 1}], [{"role": "user", "content": [{"type": "image"}]}]),
    *([{"role": "user", "content": "a", "tool_calls": [1]}], {"tools": []}, {"x": {"y": 1}}),
]


def refuses(parser: Callable[[object], object], body: object) -> bool:
    try:
        parser(body)
    except InvalidRequest:
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_whatever_a_schema_forbids_the_parser_refuses(name: str) -> None:
    schema, parser, base = CASES[name]
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid(base) and not refuses(parser, base)
    tried = 0
    for field in [*schema["properties"], "unheard_of"]:
        for value in VALUES:
            body = {**base, field: value}
            if not validator.is_valid(body):
                tried += 1
                assert refuses(parser, body), f"{field}: {value!r}"
    assert tried >= len(VALUES)
    others: tuple[object, ...] = (None, [], 1, "a")
    assert all(refuses(parser, other) for other in others)


def highest(body: Object[Any]) -> dict[str, float]:
    """Return field -> the largest allowed number, without fields whose limit depends on another field."""
    kinds = {field.name: field.kind for field in body.fields if field.name not in ("best_of", "top_logprobs")}
    return {
        name: bound(kind.high, LIMITS) for name, kind in kinds.items() if isinstance(kind, Integer | Number)
    }


@pytest.mark.parametrize("name", ["completion", "chat"])
def test_the_ends_of_every_range_are_accepted(name: str) -> None:
    schema, parser, base = CASES[name]
    whole = {"max_tokens": 2**31 - 1, "n": LIMITS.max_n, "prompt_logprobs": LIMITS.max_logprobs}
    for field, high in highest(CHAT if name == "chat" else COMPLETION).items():
        parser({**base, "max_tokens": 2**31 - 1, field: high})
    for field, high in whole.items():
        assert schema["properties"][field]["maximum"] == high
        parser({**base, field: high})


def knows(parser: Callable[[object], object], body: object) -> bool:
    try:
        parser(body)
    except UnsupportedParameter as error:
        return "is not a parameter that this server knows" not in str(error)
    except InvalidRequest:
        pass
    return True


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("completion", [COMPLETION]),
        ("chat", [CHAT]),
        ("tokenize", [TOKENIZE_TEXT, TOKENIZE_CHAT]),
        ("detokenize", [DETOKENIZE]),
    ],
)
def test_schema_and_parser_know_the_same_fields(name: str, declared: list[Object[Any]]) -> None:
    schema, parser, base = CASES[name]
    bases = [base, {"prompt": "hi"}] if name == "tokenize" else [base]
    assert not any(knows(parser, {**one, "unheard_of": None}) for one in bases)
    for field in schema["properties"]:
        assert any(knows(parser, {**one, field: one.get(field)}) for one in bases), field
    known = {
        field for body in declared for field in (*body.json_names.values(), *body.unsupported, *body.ignored)
    }
    assert set(schema["properties"]) == known


def test_every_route_is_described_with_its_access_and_nothing_else_is(tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        async with open_ingress(with_keys(tmp_path)) as ingress, ingress.client() as client:
            served = {
                (route.path, route.method): route for route in routes(ingress.service, ingress.authenticator)
            }
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            assert sum(len(methods) for methods in document["paths"].values()) == len(served)
            for (path, method), route in served.items():
                described = document["paths"][path + "{model}" * path.endswith("/")][method.lower()]
                assert (described["security"] == []) == (route.access is Access.PUBLIC)
                assert ("403" in described["responses"]) == (route.access is Access.ADMIN)
            return document

    document = asyncio.run(run())
    assert document["openapi"] == "3.1.0"
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) >= {
        "200",
        "400",
        "401",
        "404",
        "408",
        "413",
        "429",
        "431",
        "500",
        "503",
        "504",
    }


def test_the_document_has_the_limits_of_this_service() -> None:
    schema = CHAT.schema(Limits(max_n=3, max_stop_strings=2, max_logit_bias=5, max_messages=7))
    fields = schema["properties"]
    assert fields["n"]["maximum"] == 3
    assert fields["stop"]["anyOf"][1]["maxItems"] == 2
    assert fields["logit_bias"]["maxProperties"] == 5
    assert fields["messages"]["maxItems"] == 7


def test_a_service_without_keys_asks_for_none_in_its_document() -> None:
    async def run() -> dict[str, Any]:
        async with open_ingress() as ingress, ingress.client() as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    for methods in asyncio.run(run())["paths"].values():
        for described in methods.values():
            assert described["security"] == [] and "401" not in described["responses"]
