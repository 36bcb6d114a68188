"""Strictly typed look-ups in a request's JSON object: whatever is wrong is an InvalidRequest that names the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, overload

from cluster.errors import InvalidRequest, MalformedBody, UnsupportedParameter

_MAX_SHOWN_CHARS = 60
_MAX_SHOWN_BITS = 128


def shown(value: object) -> str:
    """A value for a message, as JSON would write it, cut to a sensible length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return (
            str(value)
            if value.bit_length() <= _MAX_SHOWN_BITS
            else f"an integer of {value.bit_length()} bits"
        )
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def checked_text(name: str, value: object, max_chars: int) -> str:
    """`value` as a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {shown(value)} is not a string", name)
    if len(value) > max_chars:
        raise InvalidRequest(f"{name}: {len(value)} characters are more than {max_chars}", name)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{name}: holds half a surrogate pair at character {error.start}", name
            ) from error
    return value


def checked_int(name: str, value: object, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`; a boolean is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name}: {shown(value)} is not an integer in [{low}, {high}]", name)
    if not low <= value <= high:
        raise InvalidRequest(f"{name}: {shown(value)} is outside [{low}, {high}]", name)
    return value


def checked_number(name: str, value: object, low: float, high: float, is_low_open: bool = False) -> float:
    """`value` as a finite number from `low` (itself excluded where open) to `high`."""
    interval = f"{'(' if is_low_open else '['}{low:g}, {high:g}]"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        raise InvalidRequest(f"{name}: {shown(value)} is not a number in {interval}", name)
    if not low <= value <= high or (is_low_open and value == low):
        raise InvalidRequest(f"{name}: {shown(value)} is outside {interval}", name)
    return float(value)


class Fields:
    """One JSON object of a request, read field by field. A null counts as absent."""

    def __init__(self, values: object, prefix: str = "") -> None:
        """`prefix` is put before the names in messages, as in "stream_options."."""
        if not isinstance(values, dict):
            if prefix:
                name = prefix.rstrip(".")
                raise InvalidRequest(f"{name}: {shown(values)} is not an object", name)
            raise MalformedBody(f"the body is {shown(values)}, expected a JSON object")
        self._values: Mapping[str, Any] = values
        self._prefix = prefix
        self._unread = set(values)
        self._read: set[str] = set()

    def name(self, field: str) -> str:
        return self._prefix + field

    def has(self, field: str) -> bool:
        return self._values.get(field) is not None

    def take(self, field: str) -> Any:
        """The value as it is; None where there is none."""
        self._unread.discard(field)
        self._read.add(field)
        return self._values.get(field)

    def required(self, field: str) -> Any:
        value = self.take(field)
        if value is None:
            raise InvalidRequest(f"{self.name(field)}: is required", self.name(field))
        return value

    @overload
    def integer(self, field: str, low: int, high: int) -> int | None: ...
    @overload
    def integer(self, field: str, low: int, high: int, default: int) -> int: ...
    def integer(self, field: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.take(field)
        return default if value is None else checked_int(self.name(field), value, low, high)

    @overload
    def number(self, field: str, low: float, high: float, *, is_low_open: bool = ...) -> float | None: ...
    @overload
    def number(
        self, field: str, low: float, high: float, *, default: float, is_low_open: bool = ...
    ) -> float: ...
    def number(
        self, field: str, low: float, high: float, *, default: float | None = None, is_low_open: bool = False
    ) -> float | None:
        value = self.take(field)
        return default if value is None else checked_number(self.name(field), value, low, high, is_low_open)

    def boolean(self, field: str, default: bool) -> bool:
        value = self.take(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidRequest(f"{self.name(field)}: {shown(value)} is not true or false", self.name(field))
        return value

    def text(self, field: str, max_chars: int) -> str | None:
        value = self.take(field)
        return None if value is None else checked_text(self.name(field), value, max_chars)

    def items(self, field: str, max_items: int) -> list[Any]:
        """A list; empty where there is none."""
        value = self.take(field)
        if value is None:
            return []
        if not isinstance(value, list):
            raise InvalidRequest(f"{self.name(field)}: {shown(value)} is not a list", self.name(field))
        if len(value) > max_items:
            raise InvalidRequest(
                f"{self.name(field)}: {len(value)} items are more than {max_items}", self.name(field)
            )
        return value

    def members(self, field: str) -> Fields:
        """An object within this one; without fields where there is none."""
        value = self.take(field)
        return Fields({} if value is None else value, f"{self.name(field)}.")

    def finish(
        self, neutral: Mapping[str, tuple[object, ...]] | None = None, ignored: Iterable[str] = ()
    ) -> None:
        """Refuse what has not been read: all but nulls, `ignored` fields, and `neutral` values of unsupported ones."""
        neutral = neutral or {}
        for field in sorted(self._unread.difference(ignored)):
            value, name = self._values[field], self.name(field)
            if value is None:
                if field in neutral:
                    continue
            elif any(type(value) is type(other) and value == other for other in neutral.get(field, ())):
                continue
            if field in neutral:
                raise UnsupportedParameter(f"{name}: {shown(value)} is not supported by this server", name)
            raise UnsupportedParameter(self._unknown(field), name[:_MAX_SHOWN_CHARS])

    def _unknown(self, field: str) -> str:
        name = self.name(field)[:_MAX_SHOWN_CHARS]
        close = get_close_matches(field[:_MAX_SHOWN_CHARS], self._read, n=1)
        hint = f"; did you mean {self.name(close[0])}?" if close else ""
        return f"{name}: is not a parameter that this server knows{hint}"
