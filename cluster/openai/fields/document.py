"""Writes REQUEST_FIELDS.md from the declared fields: `python -m cluster.openai.fields.document`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cluster.config.request_limits import Limits
from cluster.kinds.containers import TOKEN_ID_SCHEMA
from cluster.kinds.kind import Schema
from cluster.kinds.objects import Field, Object
from cluster.openai.fields.bodies import (
    CHAT,
    DETOKENIZE,
    ECHO,
    IGNORED,
    TOKENIZE_CHAT,
    TOKENIZE_TEXT,
    UNSUPPORTED,
)
from cluster.openai.fields.conversation import MessageFields, TextPart
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.fields.sampling import SamplingFields

PATH = Path(__file__).resolve().parents[1] / "REQUEST_FIELDS.md"
_OPENING = """# Request fields

`python -m cluster.openai.fields.document` writes this file; the declaration is in `cluster/openai/fields`.

A field that a request leaves out, or sends as null, has its default. A value of another type, a value outside
its range and a field that is not listed here are refused with a 400 that names the field. A bound that the
config sets is shown with the config's default. The fields of `protos/serving.proto` are the same ones, under
the same names unless the table says otherwise. Without a default, a sampling field has the value that the
checkpoint's generation_config.json recommends; if there is none, the field changes nothing.
"""
_SHARED: tuple[tuple[str, Object[Any]], ...] = (
    ("Sampling (completions and chat)", Object(SamplingFields)),
    ("Output (completions and chat)", Object(OutputOptions)),
)
_SECTIONS: tuple[tuple[str, Object[Any]], ...] = (
    ("/v1/completions", ECHO),
    ("/v1/chat/completions", CHAT),
    ("A message", Object(MessageFields)),
    ("A part of a message", Object(TextPart)),
    ("stream_options", Object(StreamOptions)),
    ("/tokenize with a text", TOKENIZE_TEXT),
    ("/tokenize with a conversation", TOKENIZE_CHAT),
    ("/detokenize", DETOKENIZE),
)
_LIMITS = Limits()


def document() -> str:
    """Return the text of REQUEST_FIELDS.md."""
    shared = {(field.name, field.doc) for _, body in _SHARED for field in body.fields}
    lines = [_OPENING]
    for title, body in _SHARED:
        lines += _section(title, body.fields)
    for title, body in _SECTIONS:
        own = [field for field in body.fields if (field.name, field.doc) not in shared]
        lines += _section(title, own)
    lines += ["## Accepted without effect", "", _names(IGNORED), ""]
    lines += ["## Known and refused unless the value asks for nothing", "", _names(UNSUPPORTED)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write REQUEST_FIELDS.md."""
    PATH.write_text(document(), encoding="utf-8")


def _section(title: str, fields: Iterable[Field]) -> list[str]:
    return [f"## {title}", "", "| field | type | default | |", "|---|---|---|---|", *map(_row, fields), ""]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) + "."


def _row(field: Field) -> str:
    name = f"`{field.name}`" + (f" (gRPC: `{field.attribute}`)" if field.attribute != field.name else "")
    return f"| {name} | {_words(field.kind.schema(_LIMITS))} | {_default(field)} | {field.doc} |"


def _default(field: Field) -> str:
    if field.is_required:
        return "required"
    if field.default is None or field.default in ((), "", msgspec.NODEFAULT):
        return ""
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _words(schema: Schema) -> str:
    """Describe a schema in words, such as "integer in [1, 128]"."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "integer" | "number" as kind:
            is_open = "exclusiveMinimum" in schema
            low = schema["exclusiveMinimum" if is_open else "minimum"]
            return f"{kind} in {'(' if is_open else '['}{_short(low)}, {_short(schema['maximum'])}]"
        case "string":
            return f"text of {'1 to' if 'minLength' in schema else 'up to'} {schema['maxLength']} characters"
        case "array":
            most = f" (up to {schema['maxItems']})" if "maxItems" in schema else ""
            is_ids = schema["items"] == TOKEN_ID_SCHEMA
            return f"token ids{most}" if is_ids else f"list{most} of: {_words(schema['items'])}"
        case other:
            return str(other)


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


if __name__ == "__main__":
    main()
