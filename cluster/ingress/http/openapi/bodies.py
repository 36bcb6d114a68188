"""Schemas of request bodies.

A schema cannot say everything that a body must hold: min_tokens within max_tokens, top_logprobs only with
logprobs, the context's length. A body that does not fit its schema is always refused; one that fits may be.
"""

from __future__ import annotations

from cluster.ingress.admin_bodies import OPERATION_BODIES
from cluster.openai.fields.bodies import CHAT, DETOKENIZE, ECHO, TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.kinds.kind import Schema
from cluster.openai.kinds.objects import nullable
from cluster.openai.limits import Limits
from cluster.supervisor.operations.messages import Operation

_FIXED = Limits()
"""For bodies of which no bound depends on the config."""


def completion_body(limits: Limits) -> Schema:
    """Of /v1/completions."""
    return ECHO.schema(limits)


def chat_body(limits: Limits) -> Schema:
    """Of /v1/chat/completions."""
    return CHAT.schema(limits)


def tokenize_body(limits: Limits) -> Schema:
    """Of /tokenize: either a text or a conversation."""
    text, chat = TOKENIZE_TEXT.schema(limits), TOKENIZE_CHAT.schema(limits)
    required = {*text.pop("required"), *chat.pop("required")}
    properties = {**chat["properties"], **text["properties"]}
    optional = {name: nullable(properties[name]) for name in required}
    return {**text, "properties": {**properties, **optional}}


def detokenize_body(limits: Limits) -> Schema:
    """Of /detokenize."""
    return DETOKENIZE.schema(limits)


def operation_body(operation: type[Operation]) -> Schema:
    """Of the admin route of an operation."""
    return OPERATION_BODIES[operation].schema(_FIXED)
