"""Schemas of answers: what is promised of them, not every field that there may be."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.protocol.messages import Load
from cluster.errors import OUTCOMES
from cluster.messages import ClusterView
from cluster.openai.kinds.kind import Schema

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}

USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
    "properties": {
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
        "prompt_tokens_details": {
            "type": "object",
            "required": ["cached_tokens"],
            "properties": {"cached_tokens": _COUNT},
        },
    },
}

EVENT: Schema = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}
"""Of each server-sent event; its data is a chunk as JSON, an error, or [DONE]."""

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": {"enum": sorted({row.type for row in OUTCOMES.values()})},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "additionalProperties": False,
        }
    },
}


def model_card() -> Schema:
    """Of /v1/models/{model}."""
    meta = _record(n_vocab=_COUNT)
    return _record(
        id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT, meta=meta
    )


def model_list() -> Schema:
    """Of /v1/models."""
    return _record(object={"const": "list"}, data={"type": "array", "minItems": 1, "items": model_card()})


def generation(kind: str) -> Schema:
    """Of a generation that is not streamed; `kind` is its `object`."""
    choice = _record(index=_COUNT, finish_reason={"enum": ["stop", "length"]})
    choices = {"type": "array", "minItems": 1, "items": choice}
    return _record(
        id=_TEXT, object={"const": kind}, created=_COUNT, model=_TEXT, choices=choices, usage=USAGE
    )


def tokens() -> Schema:
    """Of /tokenize."""
    ids = {"type": "array", "items": _COUNT}
    strings = {"type": ["array", "null"], "items": _TEXT}
    return _record(count=_COUNT, max_model_len=_COUNT, tokens=ids, token_strs=strings)


def text() -> Schema:
    """Of /detokenize."""
    return _record(prompt=_TEXT)


def health() -> Schema:
    """Of /health."""
    return _record(status={"const": "ready"})


def version() -> Schema:
    """Of /version."""
    return _record(version=_TEXT)


def load() -> Schema:
    """Of /load: the requests of one ingress replica, and the sums of `Load` over the dense actors."""
    return _record(**dict.fromkeys(("server_load", *Load.__struct_fields__), _COUNT))


def cluster() -> Schema:
    """Of /cluster and the admin routes: `cluster.messages.ClusterView`."""
    _, components = msgspec.json.schema_components([ClusterView], ref_template="#/$defs/{name}")
    schema: Schema = _inlined({"$ref": "#/$defs/ClusterView"}, components)
    return schema


def document() -> Schema:
    """Of /openapi.json."""
    return _record(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"})


def _record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """A schema without references."""
    if isinstance(schema, list):
        return [_inlined(item, components) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
    return {key: _inlined(value, components) for key, value in schema.items()}
