from typing import Any

import pytest

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.openai.tokenize import (
    detokenize_response,
    detokenized,
    parse_detokenize,
    parse_tokenize,
    tokenize_response,
    tokenized,
)
from tests.openai.small_tokenizers import byte_fallback, model_context

LIMITS = Limits()
MODEL = model_context(byte_fallback())
MESSAGES = [{"role": "user", "content": "yes"}]


def _tokenize(**body: Any) -> dict[str, Any]:
    request = parse_tokenize(body, LIMITS)
    return tokenize_response(request, tokenized(request, MODEL), MODEL)


def test_a_text_is_counted_and_spelled() -> None:
    assert _tokenize(prompt="yes", return_token_strs=True) == {
        "count": 1,
        "max_model_len": 256,
        "tokens": MODEL.tokenizer.encode("yes"),
        "token_strs": ["\u2581yes"],
    }
    assert _tokenize(prompt="yes")["token_strs"] is None
    assert _tokenize(prompt="")["count"] == 0


def test_a_conversation_is_rendered_first() -> None:
    opened = _tokenize(messages=MESSAGES)["tokens"]
    closed = _tokenize(messages=MESSAGES, add_generation_prompt=False)["tokens"]
    assert opened[: len(closed)] == closed
    assert len(opened) > len(closed)


def test_ids_become_text_with_special_tokens() -> None:
    token_ids = MODEL.tokenizer.encode("yes<|end|>")
    request = parse_detokenize({"tokens": token_ids, "model": "any"}, LIMITS)
    assert detokenize_response(detokenized(request, MODEL)) == {"prompt": "yes<|end|>"}
    assert detokenized(parse_detokenize({"tokens": []}, LIMITS), MODEL) == ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "tokens": [1]}, "tokens"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": MESSAGES, "tools": [{}]}, "tools"),
        ({"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
    ],
    ids=str,
)
def test_bad_bodies_are_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_tokenize(body, LIMITS)
    assert caught.value.param == param


@pytest.mark.parametrize("tokens", [None, "a", [True], [-1], ["1"], [10**6]], ids=str)
def test_bad_tokens_are_refused(tokens: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        detokenized(parse_detokenize({"tokens": tokens}, LIMITS), MODEL)
    assert caught.value.param == "tokens"
