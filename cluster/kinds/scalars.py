"""Kinds of single values: true or false, numbers and texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.kinds.kind import Kind, Limit, Schema, bound, shown

MAX_COUNT = 2**31 - 1
"""The largest value of any field that counts tokens or the like."""


@dataclass(frozen=True, slots=True)
class Boolean(Kind):
    """True or false; the numbers 1 and 0 are refused."""

    def read(self, name: str, value: Any, limits: Limits) -> bool:
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}: {shown(value)} is not true or false", name)
        return value

    def schema(self, limits: Limits) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number from `low` to `high`; 1.0 and true are refused."""

    low: int | Limit
    high: int | Limit

    def read(self, name: str, value: Any, limits: Limits) -> int:
        low, high = bound(self.low, limits), bound(self.high, limits)
        if type(value) is not int:
            raise InvalidRequest(f"{name}: {shown(value)} is not an integer in [{low}, {high}]", name)
        if not low <= value <= high:
            raise InvalidRequest(f"{name}: {shown(value)} is outside [{low}, {high}]", name)
        return value

    def schema(self, limits: Limits) -> Schema:
        return {"type": "integer", "minimum": bound(self.low, limits), "maximum": bound(self.high, limits)}


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A finite number from `low` to `high`, without `low` itself if `is_low_open`. It is read as a float."""

    low: float | Limit
    high: float | Limit
    is_low_open: bool = False

    def read(self, name: str, value: Any, limits: Limits) -> float:
        low, high = bound(self.low, limits), bound(self.high, limits)
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            raise InvalidRequest(f"{name}: {shown(value)} is not {self.expected(limits)}", name)
        if not low <= value <= high or (self.is_low_open and value == low):
            raise InvalidRequest(f"{name}: {shown(value)} is outside {self._interval(limits)}", name)
        return float(value)

    def schema(self, limits: Limits) -> Schema:
        low = "exclusiveMinimum" if self.is_low_open else "minimum"
        return {"type": "number", low: bound(self.low, limits), "maximum": bound(self.high, limits)}

    def expected(self, limits: Limits) -> str:
        """Return the accepted values in words, such as "a number in (0, 1]"."""
        return f"a number in {self._interval(limits)}"

    def _interval(self, limits: Limits) -> str:
        low, high = bound(self.low, limits), bound(self.high, limits)
        return f"{'(' if self.is_low_open else '['}{low:g}, {high:g}]"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that a whole text must match, and the words for such texts in messages."""

    regex: str
    words: str


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string of at most `max_chars` characters that can be encoded as UTF-8."""

    max_chars: int | Limit
    empty: str | None = None
    """Error text for an empty string; None if an empty string is allowed."""
    pattern: Pattern | None = None

    def read(self, name: str, value: Any, limits: Limits) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name}: {shown(value)} is not a string", name)
        max_chars = bound(self.max_chars, limits)
        if len(value) > max_chars:
            raise InvalidRequest(f"{name}: {len(value)} characters are more than {max_chars}", name)
        if not value and self.empty is not None:
            raise InvalidRequest(f"{name}: {self.empty}", name)
        if not value.isascii():
            _check_encodable(name, value)
        if self.pattern is not None and not re.fullmatch(self.pattern.regex, value):
            raise InvalidRequest(f"{name}: {shown(value)} is not {self.pattern.words}", name)
        return value

    def schema(self, limits: Limits) -> Schema:
        schema: Schema = {"type": "string", "maxLength": bound(self.max_chars, limits)}
        if self.empty is not None:
            schema["minLength"] = 1
        if self.pattern is not None:
            schema["pattern"] = f"^{self.pattern.regex}$"
        return schema


def _check_encodable(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"{name}: holds half a surrogate pair at character {error.start}"
        raise InvalidRequest(message, name) from error


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few strings. `values` maps each accepted string to the string that the code uses for it."""

    values: Mapping[str, str]

    def read(self, name: str, value: Any, limits: Limits) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name}: {shown(value)} is not a string", name)
        if value not in self.values:
            raise InvalidRequest(f"{name}: {shown(value)} is not one of {', '.join(self.values)}", name)
        return self.values[value]

    def schema(self, limits: Limits) -> Schema:
        return {"type": "string", "enum": list(self.values)}
