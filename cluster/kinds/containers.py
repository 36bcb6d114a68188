"""Kinds of values made of other values: lists, token ids, and values whose JSON type selects the kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.kinds.kind import Kind, Limit, Schema, bound, shown

MAX_TOKEN_ID = 2**31 - 1
"""The largest token id in any vocabulary.

The bound of the model's vocabulary is checked later, in `prepare`.
"""
TOKEN_ID_SCHEMA: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list of values of one kind, read as a tuple."""

    item: Kind
    max_items: int | Limit | None = None
    empty: str | None = None
    """Error text for an empty list; None if an empty list is allowed."""

    def read(self, name: str, value: Any, limits: Limits) -> tuple[Any, ...]:
        max_items = None if self.max_items is None else bound(self.max_items, limits)
        items = checked_list(name, value, max_items)
        if not items and self.empty is not None:
            raise InvalidRequest(f"{name}: {self.empty}", name)
        read = self.item.read
        return tuple([read(f"{name}[{index}]", item, limits) for index, item in enumerate(items)])

    def schema(self, limits: Limits) -> Schema:
        schema: Schema = {"type": "array", "items": self.item.schema(limits)}
        if self.empty is not None:
            schema["minItems"] = 1
        if self.max_items is not None:
            schema["maxItems"] = bound(self.max_items, limits)
        return schema


@dataclass(frozen=True, slots=True)
class TokenIds(Kind):
    """A list of token ids, read as a tuple. The ids are not yet compared with a vocabulary."""

    max_items: int | Limit

    def read(self, name: str, value: Any, limits: Limits) -> tuple[int, ...]:
        return checked_ids(name, checked_list(name, value, bound(self.max_items, limits)))

    def schema(self, limits: Limits) -> Schema:
        return {"type": "array", "items": TOKEN_ID_SCHEMA, "maxItems": bound(self.max_items, limits)}


@dataclass(frozen=True, slots=True)
class ByJsonType(Kind):
    """A value whose JSON type selects its kind."""

    kinds: Mapping[type, Kind]
    """str, list, dict, bool, int or float -> kind."""
    expected: str
    """The accepted types in words, such as "a string or a list of parts"."""

    def read(self, name: str, value: Any, limits: Limits) -> Any:
        kind = self.kinds.get(type(value))
        if kind is None:
            raise InvalidRequest(f"{name}: {shown(value)} is not {self.expected}", name)
        return kind.read(name, value, limits)

    def schema(self, limits: Limits) -> Schema:
        return {"anyOf": [kind.schema(limits) for kind in self.kinds.values()]}


def checked_list(name: str, value: Any, max_items: int | None, noun: str = "items") -> list[Any]:
    """Return `value` if it is a list of at most `max_items`, else raise InvalidRequest.

    `noun` is the word for the items in the message.
    """
    if not isinstance(value, list):
        raise InvalidRequest(f"{name}: {shown(value)} is not a list", name)
    if max_items is not None and len(value) > max_items:
        raise InvalidRequest(f"{name}: {len(value)} {noun} are more than {max_items}", name)
    return value


def checked_ids(name: str, values: list[Any]) -> tuple[int, ...]:
    """Return `values` as a tuple of token ids.

    Raises InvalidRequest, which shows the first value that is no token id.
    """
    if values and (set(map(type, values)) != {int} or min(values) < 0 or max(values) > MAX_TOKEN_ID):
        wrong = next(item for item in values if type(item) is not int or not 0 <= item <= MAX_TOKEN_ID)
        raise InvalidRequest(f"{name}: {shown(wrong)} is not a token id", name)
    return tuple(values)
