"""schemathesis sends bodies that match the served OpenAPI document, and bodies that do not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from cluster.errors import InvalidRequest
from cluster.ingress.admin_bodies import parse_operation
from cluster.supervisor.operations.messages import OPERATIONS
from tests.end_to_end.running import Running
from tests.fuzz.unharmed import unharmed
from tests.support.local_ingress import open_ingress

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MAX_TOKENS = 4
SECONDS = 60.0


def cheap(body: Any) -> Any:
    """Return the body, changed so that a valid request generates few tokens and has time for them.

    A short timeout of the client would be answered with 504.
    """
    if not isinstance(body, dict) or not ({"prompt", "messages"} & set(body)):
        return body
    names = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    lengths = {name: MAX_TOKENS for name in names if type(body[name]) is int and body[name] > MAX_TOKENS}
    seconds = body.get("timeout")
    is_short = isinstance(seconds, int | float) and 0 < seconds < SECONDS
    times = {"timeout": SECONDS} if is_short and not isinstance(seconds, bool) else {}
    return {**body, **(lengths if names else {"max_tokens": MAX_TOKENS}), **times}


def attack(service: Running, num_inputs: int) -> Counter[int]:
    """Make `num_inputs` calls, spread over all operations, and count the statuses.

    Admin operations are left out, since they would change the service.
    """
    with service.client() as client:
        document = client.get("/openapi.json").json()
    document["paths"] = {path: item for path, item in document["paths"].items() if "/admin/" not in path}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=service.url)
    results: list[Any] = list(schema.get_all_operations())
    found = [result.ok() for result in results]
    weights = {operation.label: 8 if operation.method.upper() == "POST" else 1 for operation in found}
    statuses: Counter[int] = Counter()
    for operation in found:
        modes = [GenerationMode.POSITIVE]
        if operation.method.upper() == "POST":
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            share = -(-num_inputs * weights[operation.label] // (sum(weights.values()) * len(modes)))
            statuses += _call(operation, mode, share)
    return statuses


def _call(operation: Any, mode: GenerationMode, num_inputs: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    is_negative = mode is GenerationMode.NEGATIVE

    @settings(
        max_examples=num_inputs,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        body = case.body
        case.body = cheap(body)
        checks = [*CHECKS, negative_data_rejection] if is_negative and case.body is body else CHECKS
        response = case.call_and_validate(checks=checks, timeout=SECONDS)
        statuses[response.status_code] += 1

    call()
    return statuses


@pytest.mark.parametrize("num_inputs", [420, pytest.param(8000, marks=pytest.mark.slow)])
def test_no_body_harms_the_service_and_all_answers_are_as_documented(
    service: Running, num_inputs: int
) -> None:
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    with unharmed(service):
        statuses = attack(service, num_inputs)
    # Routes without a body have few different inputs, and hypothesis does not repeat an input.
    assert statuses.total() >= num_inputs * 0.8, statuses
    assert statuses[200] > num_inputs * 0.05 and statuses[400] > num_inputs * 0.2, statuses


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)
ADMIN_BODIES = JSON | st.fixed_dictionaries(
    {}, optional={"expert_actors": JSON, "grace_seconds": JSON, "x": JSON}
)


@settings(max_examples=200)
@given(ADMIN_BODIES)
def test_admin_bodies_are_read_or_refused(body: object) -> None:
    for operation in OPERATIONS:
        try:
            parse_operation(operation, body)
        except InvalidRequest as error:
            assert str(error)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(["scale", "drain", "rebalance", "restart"]), st.binary(max_size=40)),
        max_size=8,
    )
)
def test_bytes_sent_to_admin_routes_are_answered(calls: list[tuple[str, bytes]]) -> None:
    async def run() -> None:
        async with open_ingress() as ingress, ingress.client() as client:
            for name, content in calls:
                response: httpx.Response = await client.post(f"/admin/{name}", content=content)
                assert response.status_code in (200, 400)

    asyncio.run(run())
