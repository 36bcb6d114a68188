"""Schemas of request bodies. A null counts as absent everywhere, and what a field's range does not allow is a 400.

Not everything that a body must hold can be said in a schema (min_tokens within max_tokens, top_logprobs only with logprobs, the
context's length): a body that fits its schema may still be refused, one that does not fit is refused always.
"""

from __future__ import annotations

from typing import Any

from cluster.config.cluster_config import NUM_EXPERTS
from cluster.ingress.admin_bodies import MAX_GRACE_SECONDS
from cluster.openai.limits import Limits
from cluster.openai.parsing.conversation import MAX_NAME_CHARS, NEUTRAL, RESERVED, ROLES
from cluster.openai.parsing.parse import IGNORED, UNSUPPORTED
from cluster.openai.parsing.ranges import (
    ABOVE_LOW,
    INTEGERS,
    MAX_COUNT,
    MAX_LOGIT_BIAS,
    MAX_MODEL_CHARS,
    MAX_SALT_CHARS,
    MAX_TOKEN_ID,
    MIN_LOGIT_BIAS,
    NUMBERS,
)
from cluster.openai.tokenize import UNSUPPORTED as UNSUPPORTED_IN_TOKENIZE

Schema = dict[str, Any]

_BOOLEAN: Schema = {"type": ["boolean", "null"]}
_TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_PRINTABLE = "^[!-~]([ -~]*[!-~])?$"


def completion_body(limits: Limits) -> Schema:
    """Of /v1/completions."""
    properties = {
        **_common(limits, min_max_tokens=0),
        "prompt": _prompt(limits),
        "logprobs": _integer(0, limits.max_logprobs),
    }
    return _object(properties, ["prompt"], UNSUPPORTED)


def chat_body(limits: Limits) -> Schema:
    """Of /v1/chat/completions."""
    properties = {
        **_common(limits, min_max_tokens=1),
        **_conversation(limits),
        "logprobs": _BOOLEAN,
        "top_logprobs": _integer(0, limits.max_logprobs),
    }
    return _object(properties, ["messages"], UNSUPPORTED)


def tokenize_body(limits: Limits) -> Schema:
    """Of /tokenize."""
    properties = {
        **_conversation(limits),
        "model": _text(MAX_MODEL_CHARS),
        "prompt": _text(limits.max_prompt_chars),
        "add_special_tokens": _BOOLEAN,
        "return_token_strs": _BOOLEAN,
    }
    properties["messages"] = {"anyOf": [properties["messages"], {"type": "null"}]}
    return _object(properties, [], UNSUPPORTED_IN_TOKENIZE)


def detokenize_body(limits: Limits) -> Schema:
    """Of /detokenize."""
    tokens = {"type": "array", "items": _TOKEN_ID, "maxItems": limits.max_prompt_chars}
    return _object({"model": _text(MAX_MODEL_CHARS), "tokens": tokens}, ["tokens"], {})


def scale_body() -> Schema:
    """Of /admin/scale."""
    expert_actors = {"type": "integer", "minimum": 1, "maximum": NUM_EXPERTS}
    return _closed({"expert_actors": expert_actors}, ["expert_actors"])


def drain_body() -> Schema:
    """Of /admin/drain."""
    return _closed(
        {"grace_seconds": {"type": ["number", "null"], "minimum": 0, "maximum": MAX_GRACE_SECONDS}}, []
    )


def empty_body() -> Schema:
    """Of the admin operations without parameters."""
    return _closed({}, [])


def _common(limits: Limits, min_max_tokens: int) -> dict[str, Schema]:
    """What both kinds of generation have."""
    return {
        **{name: _integer(low, high) for name, (low, high) in INTEGERS.items()},
        **{name: _number(name) for name in NUMBERS},
        **{name: _integer(min_max_tokens, MAX_COUNT) for name in ("max_tokens", "max_completion_tokens")},
        **{name: _integer(1, limits.max_n) for name in ("n", "best_of")},
        **dict.fromkeys(
            (
                "echo",
                "stream",
                "ignore_eos",
                "add_special_tokens",
                "include_stop_str_in_output",
                "skip_special_tokens",
                "return_token_ids",
                "return_tokens_as_token_ids",
            ),
            _BOOLEAN,
        ),
        "model": _text(MAX_MODEL_CHARS),
        "request_id": {**_text(limits.max_request_id_chars), "pattern": _PRINTABLE},
        "cache_salt": {**_text(MAX_SALT_CHARS), "minLength": 1},
        "priority": _integer(-limits.max_priority, limits.max_priority),
        "timeout": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": limits.max_timeout_seconds,
        },
        "prompt_logprobs": _integer(0, limits.max_logprobs),
        "stop": _stop(limits),
        "stop_token_ids": {
            "type": ["array", "null"],
            "items": _TOKEN_ID,
            "maxItems": limits.max_stop_token_ids,
        },
        "logit_bias": {
            "type": ["object", "null"],
            "maxProperties": limits.max_logit_bias,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": MIN_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS},
        },
        "stream_options": {
            "type": ["object", "null"],
            "properties": {
                "include_usage": _BOOLEAN,
                "continuous_usage_stats": _BOOLEAN,
                "include_obfuscation": {"enum": [False, None]},
            },
            "additionalProperties": False,
        },
    }


def _conversation(limits: Limits) -> dict[str, Schema]:
    text = {"type": "string", "maxLength": limits.max_prompt_chars}
    part = _closed({"type": {"const": "text"}, "text": text}, ["type", "text"])
    message: dict[str, Schema] = {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [text, {"type": "array", "minItems": 1, "items": part}]},
        "name": _text(MAX_NAME_CHARS),
        **_neutral(NEUTRAL),
    }
    return {
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": limits.max_messages,
            "items": _closed(message, ["role", "content"]),
        },
        "add_generation_prompt": _BOOLEAN,
        "continue_final_message": _BOOLEAN,
        "chat_template_kwargs": {
            "type": ["object", "null"],
            "propertyNames": {"not": {"enum": sorted(RESERVED)}},
        },
    }


def _prompt(limits: Limits) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": limits.max_prompt_chars}
    ids = {"type": "array", "minItems": 1, "items": _TOKEN_ID}
    several = {"type": "array", "minItems": 1, "maxItems": limits.max_prompts}
    return {"anyOf": [text, ids, {**several, "items": text}, {**several, "items": ids}]}


def _stop(limits: Limits) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": limits.max_stop_chars}
    return {
        "anyOf": [
            text,
            {"type": "array", "items": text, "maxItems": limits.max_stop_strings},
            {"type": "null"},
        ]
    }


def _integer(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _number(name: str) -> Schema:
    low, high = NUMBERS[name]
    bound = "exclusiveMinimum" if name in ABOVE_LOW else "minimum"
    return {"type": ["number", "null"], bound: low, "maximum": high}


def _text(max_chars: int) -> Schema:
    return {"type": ["string", "null"], "maxLength": max_chars}


def _object(
    properties: dict[str, Schema], required: list[str], unsupported: dict[str, tuple[object, ...]]
) -> Schema:
    """An OpenAI body: with the fields that are accepted without effect, and those of which only a neutral value is."""
    return _closed({**{name: {} for name in IGNORED}, **_neutral(unsupported), **properties}, required)


def _neutral(unsupported: dict[str, tuple[object, ...]]) -> dict[str, Schema]:
    """JSON Schema knows one 1, where the parser tells 1 from 1.0 and takes both."""
    return {
        name: {"enum": [None, *(value for value in values if not isinstance(value, float))]}
        for name, values in unsupported.items()
    }


def _closed(properties: dict[str, Schema], required: list[str]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema
