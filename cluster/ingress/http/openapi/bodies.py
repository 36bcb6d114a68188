"""JSON Schemas of the request bodies that `Object.schema` does not make by itself.

A schema cannot express every condition on a body, for example that min_tokens is at most max_tokens, that
top_logprobs needs logprobs, or that the prompt fits into the context. A body that does not match its schema
is always refused; a body that matches may still be refused.
"""

from __future__ import annotations

from cluster.config.request_limits import Limits
from cluster.kinds.kind import Schema
from cluster.kinds.objects import nullable
from cluster.openai.fields.bodies import TOKENIZE_CHAT, TOKENIZE_TEXT


def tokenize_body(limits: Limits) -> Schema:
    """Return the schema of the body of /tokenize, which has either a text or a conversation."""
    text, chat = TOKENIZE_TEXT.schema(limits), TOKENIZE_CHAT.schema(limits)
    required = {*text.pop("required"), *chat.pop("required")}
    properties = {**chat["properties"], **text["properties"]}
    optional = {name: nullable(properties[name]) for name in required}
    return {**text, "properties": {**properties, **optional}}
