"""Schemas of request bodies that `Object.schema` does not make by itself.

A schema cannot say everything that a body must hold: min_tokens within max_tokens, top_logprobs only with
logprobs, the context's length. A body that does not fit its schema is always refused; one that fits may be.
"""

from __future__ import annotations

from cluster.openai.fields.bodies import TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.kinds.kind import Schema
from cluster.openai.kinds.objects import nullable
from cluster.openai.limits import Limits


def tokenize_body(limits: Limits) -> Schema:
    """Of /tokenize: either a text or a conversation."""
    text, chat = TOKENIZE_TEXT.schema(limits), TOKENIZE_CHAT.schema(limits)
    required = {*text.pop("required"), *chat.pop("required")}
    properties = {**chat["properties"], **text["properties"]}
    optional = {name: nullable(properties[name]) for name in required}
    return {**text, "properties": {**properties, **optional}}
