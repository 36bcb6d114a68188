"""Reads JSON objects whose fields a msgspec Struct declares, and makes their JSON Schema.

A field is declared as

    name: Annotated[type, kind, "One line of documentation."] = default

The type is what the code sees, and the kind is what a client may send. A field with a default may be left
out, and a null counts as left out. A field without a kind is not read from the object.
`Annotated[Other, Inline()]` makes the fields of another Struct fields of the same object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest, MalformedBody, UnsupportedParameter
from cluster.kinds.kind import Kind, Schema, cut, shown

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Inline:
    """Marks a field whose type is a Struct, and whose fields appear directly in the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One declared field of an object."""

    name: str
    """The field's name in JSON."""
    attribute: str
    """The field's name in Python and in gRPC."""
    kind: Kind
    doc: str
    default: Any
    """`msgspec.NODEFAULT` if the field is required or its default is made anew for each request."""
    is_required: bool
    part: int
    """Index of the Struct that declares the field: 0 is the object's own Struct, others are inlined."""


class Object(Kind, Generic[_Struct]):
    """An object with the fields of a Struct. Any other field is an error unless the constructor names it."""

    def __init__(
        self,
        struct: type[_Struct],
        *,
        ignored: Collection[str] = (),
        unsupported: Mapping[str, tuple[object, ...]] | None = None,
    ) -> None:
        """`ignored` fields may have any value, which has no effect.

        `unsupported` fields are known and refused, except for the values given here and null, which ask for
        nothing. Raises ValueError if a field is declared twice.
        """
        self._struct = struct
        self._inlined = [
            (item.name, item.type.__origin__)
            for item in msgspec.structs.fields(struct)
            if any(isinstance(mark, Inline) for mark in getattr(item.type, "__metadata__", ()))
        ]
        structs = (struct, *(inlined for _, inlined in self._inlined))
        self.fields = tuple(field for part, each in enumerate(structs) for field in _declared(each, part))
        """The fields in the order of their declaration; the fields of inlined Structs come last."""
        self.json_names = {field.attribute: field.name for field in self.fields}
        """Name in Python and gRPC -> name in JSON, of every field."""
        self.ignored, self.unsupported = tuple(ignored), dict(unsupported or {})
        self._readers = {field.name: (field.part, field.attribute, field.kind.read) for field in self.fields}
        self._required = tuple(
            (field.part, field.attribute, field.name) for field in self.fields if field.is_required
        )
        names = [*self._readers, *self.ignored, *self.unsupported]
        if len(self._readers) < len(self.fields) or len(set(names)) < len(names):
            raise ValueError(f"{struct.__name__} declares a field twice")

    def read(self, name: str, value: Any, limits: Limits) -> _Struct:
        """Read an object into the Struct. `name` is empty if the object is a whole body.

        Raises InvalidRequest for a wrong value, UnsupportedParameter for a field that is not supported or not
        known, and MalformedBody for a body that is not an object.
        """
        if not isinstance(value, dict):
            if not name:
                raise MalformedBody(f"the body is {shown(value)}, expected a JSON object")
            raise InvalidRequest(f"{name}: {shown(value)} is not an object", name)
        prefix, readers = f"{name}." if name else "", self._readers
        own: dict[str, Any] = {}
        parts = [own, *[{} for _ in self._inlined]] if self._inlined else [own]
        for field, item in value.items():
            if field not in readers:
                self._check_other(prefix, field, item)
            elif item is not None:
                part, attribute, read = readers[field]
                parts[part][attribute] = read(prefix + field, item, limits)
        for part, attribute, field in self._required:
            if attribute not in parts[part]:
                missing = prefix + field
                raise InvalidRequest(f"{missing}: is required", missing)
        for part, (attribute, struct) in enumerate(self._inlined, 1):
            own[attribute] = struct(**parts[part])
        return self._struct(**own)

    def schema(self, limits: Limits) -> Schema:
        properties = {field.name: _field_schema(field, limits) for field in self.fields}
        for name, neutral in self.unsupported.items():
            # JSON Schema does not tell 1 from 1.0 as Python does, so the float is left out; both are
            # accepted.
            values = [None, *(value for value in neutral if not isinstance(value, float))]
            properties[name] = {"enum": values, "description": "Not supported; these values ask for nothing."}
        properties |= {name: {"description": "Accepted without effect."} for name in self.ignored}
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [name for _, _, name in self._required]
        return {**schema, "required": required} if required else schema

    def _check_other(self, prefix: str, field: str, value: object) -> None:
        if field in self.ignored:
            return
        name = prefix + field
        neutral = self.unsupported.get(field)
        if neutral is None:
            self._refuse_unknown(prefix, field)
        if value is None or any(type(value) is type(other) and value == other for other in neutral):
            return
        raise UnsupportedParameter(f"{name}: {shown(value)} is not supported by this server", name)

    def _refuse_unknown(self, prefix: str, field: str) -> NoReturn:
        name = cut(prefix + field)
        close = get_close_matches(cut(field), self._readers, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else ""
        raise UnsupportedParameter(f"{name}: is not a parameter that this server knows{hint}", name)


class Variants(Kind):
    """An object of one of several shapes.

    The value of its field `tag` selects the shape, which declares `tag`.
    """

    def __init__(self, tag: str, shapes: Mapping[str, Object[Any]]) -> None:
        self._tag, self._shapes = tag, dict(shapes)

    def read(self, name: str, value: Any, limits: Limits) -> Any:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name}: {shown(value)} is not an object", name)
        tag, tag_name = value.get(self._tag), f"{name}.{self._tag}"
        if tag is None:
            raise InvalidRequest(f"{tag_name}: is required", tag_name)
        if not isinstance(tag, str):
            raise InvalidRequest(f"{tag_name}: {shown(tag)} is not a string", tag_name)
        if tag not in self._shapes:
            expected = " or ".join(map(repr, self._shapes))
            raise UnsupportedParameter(
                f"{tag_name}: {shown(tag)} is not supported by this server, expected {expected}", tag_name
            )
        return self._shapes[tag].read(name, value, limits)

    def schema(self, limits: Limits) -> Schema:
        shapes = [shape.schema(limits) for shape in self._shapes.values()]
        return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}


def _declared(struct: type[msgspec.Struct], part: int) -> list[Field]:
    declared = []
    for item in msgspec.structs.fields(struct):
        metadata = getattr(item.type, "__metadata__", ())
        kind = next((entry for entry in metadata if isinstance(entry, Kind)), None)
        if kind is None:
            continue
        field = Field(
            name=item.encode_name,
            attribute=item.name,
            kind=kind,
            doc=next((entry for entry in metadata if isinstance(entry, str)), ""),
            default=item.default,
            is_required=item.required,
            part=part,
        )
        declared.append(field)
    return declared


def _field_schema(field: Field, limits: Limits) -> Schema:
    schema = field.kind.schema(limits)
    if not field.is_required:
        schema = nullable(schema)
    if isinstance(field.default, bool | int | float | str) and field.default != "":
        schema = {**schema, "default": field.default}
    return {**schema, "description": field.doc} if field.doc else schema


def nullable(schema: Schema) -> Schema:
    """Return the schema of the same values and null."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        schema = {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema
