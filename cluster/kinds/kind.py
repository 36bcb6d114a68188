"""The base class of kinds, bounds that the config sets, and the form of values in error messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from cluster.config.request_limits import Limits

Schema: TypeAlias = dict[str, Any]
"""A JSON Schema (2020-12)."""

_Number = TypeVar("_Number", int, float)
_MAX_SHOWN_CHARS = 60
_MAX_SHOWN_BITS = 128


class Kind(ABC):
    """What a client may send as the value of a field. A kind knows nothing of other fields."""

    @abstractmethod
    def read(self, name: str, value: Any, limits: Limits) -> Any:
        """Return the value as the code uses it.

        Raises InvalidRequest, whose message has `name`, the value and what was expected.
        """

    @abstractmethod
    def schema(self, limits: Limits) -> Schema:
        """Return the JSON Schema of the accepted values.

        `read` may accept less than its schema, never more.
        """


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that the config sets: the field of `Limits` with this name, or its negative."""

    name: str
    sign: int = 1

    def __neg__(self) -> Limit:
        return Limit(self.name, -self.sign)


def bound(value: _Number | Limit, limits: Limits) -> _Number:
    """Return the number that a bound stands for."""
    if isinstance(value, Limit):
        number: _Number = value.sign * getattr(limits, value.name)
        return number
    return value


def shown(value: object) -> str:
    """Return a short text that shows a value in an error message, much as JSON would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        if value.bit_length() <= _MAX_SHOWN_BITS:
            return str(value)
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return cut(repr(value), "...")


def cut(text: str, end: str = "") -> str:
    """Return a client's text, cut to at most 60 characters; `end` follows if something was cut off."""
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + end
