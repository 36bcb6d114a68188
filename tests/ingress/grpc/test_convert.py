"""Messages become the bodies that ask for the same over HTTP, by the names of the declaration."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.ingress.grpc.convert import chat_body, generate_body, tokenize_body
from cluster.kinds.objects import Object
from cluster.openai.fields.bodies import CHAT, COMPLETION, TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.parsing.parse import parse_chat, parse_completion
from cluster.openai.tokenize import parse_tokenize
from protos import serving_pb2

LIMITS = Limits()
SAMPLING: dict[str, Any] = {
    "max_tokens": 9,
    "min_tokens": 0,
    "temperature": 0.0,
    "top_k": -1,
    "top_p": 0.5,
    "min_p": 0.25,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.0,
    "presence_penalty": -1.0,
    "stop": ["a", "b"],
    "stop_token_ids": [5, 4],
    "include_stop_str_in_output": True,
    "ignore_eos": False,
    "n": 2,
    "seed": -1,
    "prompt_logprobs": 0,
    "skip_special_tokens": False,
}
REQUEST: dict[str, Any] = {
    "model": "m",
    "truncate_prompt_tokens": -1,
    "request_id": "mine",
    "priority": -3,
    "cache_salt": "s",
}


@pytest.mark.parametrize(
    ("message", "bodies"),
    [
        (serving_pb2.GenerateRequest, [COMPLETION]),
        (serving_pb2.ChatRequest, [CHAT]),
        (serving_pb2.SamplingParams, [COMPLETION, CHAT]),
        (serving_pb2.TokenizeRequest, [TOKENIZE_TEXT]),
        (serving_pb2.Conversation, [TOKENIZE_CHAT]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_field_of_a_message_is_declared(message: Any, bodies: list[Object[Any]]) -> None:
    holders = {"sampling", "conversation"}
    for body in bodies:
        assert set(message.DESCRIPTOR.fields_by_name) - holders <= set(body.json_names)


def test_every_sampling_field_can_be_sent_and_left_out() -> None:
    fields = serving_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    assert set(SamplingFields.__struct_fields__) <= set(fields)
    assert all(field.has_presence for field in fields.values() if not field.is_repeated)


def test_a_message_asks_for_the_same_as_its_body() -> None:
    sampling = serving_pb2.SamplingParams(**SAMPLING, logit_bias={7: -100}, logprobs=3)
    common = {**SAMPLING, **REQUEST, "logit_bias": {"7": -100}, "timeout": 1.5, "return_token_ids": True}
    generate = serving_pb2.GenerateRequest(
        prompts=[serving_pb2.Prompt(text="a"), serving_pb2.Prompt(text="b")],
        sampling=sampling,
        echo=True,
        add_special_tokens=False,
        timeout_seconds=1.5,
        **REQUEST,
    )
    body = {**common, "prompt": ["a", "b"], "logprobs": 3, "echo": True, "add_special_tokens": False}
    assert generate_body(generate) == body
    assert parse_completion(generate_body(generate), LIMITS) == parse_completion(body, LIMITS)
    chat = serving_pb2.ChatRequest(
        messages=[serving_pb2.Message(role="user", content="hi")],
        sampling=sampling,
        add_generation_prompt=False,
        continue_final_message=True,
        timeout_seconds=1.5,
        **REQUEST,
    )
    body = {
        **common,
        "messages": [{"role": "user", "content": "hi"}],
        "logprobs": True,
        "top_logprobs": 3,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert chat_body(chat) == body
    assert parse_chat(chat_body(chat), LIMITS) == parse_chat(body, LIMITS)


def test_what_a_message_leaves_out_has_the_default_of_the_body() -> None:
    message = serving_pb2.GenerateRequest(
        prompts=[serving_pb2.Prompt(token_ids=serving_pb2.TokenIds(ids=[1, 2]))]
    )
    body = {"prompt": [[1, 2]], "return_token_ids": True}
    assert generate_body(message) == body
    assert parse_completion(generate_body(message), LIMITS) == parse_completion(body, LIMITS)


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (serving_pb2.TokenizeRequest(text="", model="m"), {"prompt": "", "model": "m"}),
        (
            serving_pb2.TokenizeRequest(text="a", add_special_tokens=False),
            {"prompt": "a", "add_special_tokens": False},
        ),
        (
            serving_pb2.TokenizeRequest(
                conversation=serving_pb2.Conversation(
                    messages=[serving_pb2.Message(role="user", content="a")], add_generation_prompt=False
                )
            ),
            {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False},
        ),
    ],
    ids=["empty", "text", "conversation"],
)
def test_tokenize_takes_a_text_or_a_conversation(message: Any, body: dict[str, Any]) -> None:
    assert tokenize_body(message) == body
    parse_tokenize(tokenize_body(message), LIMITS)


def test_ranges_are_those_of_the_body() -> None:
    sampling = serving_pb2.SamplingParams(temperature=7)
    message = serving_pb2.GenerateRequest(prompts=[serving_pb2.Prompt(text="a")], sampling=sampling)
    with pytest.raises(InvalidRequest, match=r"temperature: 7.0 is outside \[0, 2\]"):
        parse_completion(generate_body(message), LIMITS)
    with pytest.raises(InvalidRequest, match="prompts: one of them has neither text nor token_ids"):
        generate_body(serving_pb2.GenerateRequest(prompts=[serving_pb2.Prompt()]))
