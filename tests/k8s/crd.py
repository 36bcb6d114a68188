"""Turns a custom resource definition into a JSON Schema that is stricter than the API server.

The schema refuses unknown fields, which a server drops silently.
"""

from __future__ import annotations

from typing import Any


def schema_of(definition: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the schema of one version of a CRD in a form that jsonschema understands."""
    (found,) = (item for item in definition["spec"]["versions"] if item["name"] == version)
    schema = _convert(found["schema"]["openAPIV3Schema"])
    assert isinstance(schema, dict)
    return schema


def _convert(schema: Any) -> Any:
    if isinstance(schema, bool):  # additionalProperties: true
        return schema
    result = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("format", "description", "default", "nullable")
    }
    if "properties" in schema:
        result["properties"] = {name: _convert(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    for key in ("items", "additionalProperties", "not"):
        if key in schema:
            result[key] = _convert(schema[key])
    for key in ("anyOf", "allOf", "oneOf"):
        # These only constrain fields that are declared beside them, where unknown fields are refused.
        if key in schema:
            result[key] = [_constraint(part) for part in schema[key]]
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable"):
        return {"anyOf": [result, {"type": "null"}]}
    return result


def _constraint(schema: Any) -> Any:
    result = _convert(schema)
    if isinstance(result, dict) and "additionalProperties" not in schema:
        result.pop("additionalProperties", None)
    return result
