"""JSON Schemas of the answers. They say what clients can rely on; an answer may have further fields."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.protocol.messages import Load
from cluster.errors import OUTCOMES
from cluster.kinds.kind import Schema
from cluster.messages import ClusterView

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
"""One server-sent event; its data is a chunk as JSON, an error as JSON, or [DONE]."""

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
    """Return the schema of the answer of /v1/models/{model}."""
    meta = _record(n_vocab=_COUNT)
    return _record(
        id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT, meta=meta
    )


def model_list() -> Schema:
    """Return the schema of the answer of /v1/models."""
    return _record(object={"const": "list"}, data={"type": "array", "minItems": 1, "items": model_card()})


def generation(kind: str) -> Schema:
    """Return the schema of a generated answer that is not streamed; `kind` is the value of its `object`."""
    choice = _record(index=_COUNT, finish_reason={"enum": ["stop", "length"]})
    choices = {"type": "array", "minItems": 1, "items": choice}
    return _record(
        id=_TEXT, object={"const": kind}, created=_COUNT, model=_TEXT, choices=choices, usage=USAGE
    )


def tokens() -> Schema:
    """Return the schema of the answer of /tokenize."""
    ids = {"type": "array", "items": _COUNT}
    strings = {"type": ["array", "null"], "items": _TEXT}
    return _record(count=_COUNT, max_model_len=_COUNT, tokens=ids, token_strs=strings)


def text() -> Schema:
    """Return the schema of the answer of /detokenize."""
    return _record(prompt=_TEXT)


def health() -> Schema:
    """Return the schema of the answer of /health."""
    return _record(status={"const": "ready"})


def version() -> Schema:
    """Return the schema of the answer of /version."""
    return _record(version=_TEXT)


def load() -> Schema:
    """Return the schema of the answer of /load.

    The answer has the number of requests of one ingress replica, and the fields of `Load`, summed over the
    dense actors.
    """
    return _record(**dict.fromkeys(("server_load", *Load.__struct_fields__), _COUNT))


def cluster() -> Schema:
    """Return the schema of the answer of /cluster and the admin routes, a `cluster.messages.ClusterView`."""
    _, components = msgspec.json.schema_components([ClusterView], ref_template="#/$defs/{name}")
    schema: Schema = _inlined({"$ref": "#/$defs/ClusterView"}, components)
    return schema


def document() -> Schema:
    """Return the schema of the answer of /openapi.json."""
    return _record(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"})


def _record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """Return the schema with every reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_inlined(item, components) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
    return {key: _inlined(value, components) for key, value in schema.items()}
