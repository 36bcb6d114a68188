"""Typed look-ups in a JSON object.

Each illegal value raises a ConfigError with file, key, value and expectation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from actors.errors import ConfigError, UnreadableFileError

JsonObject = Mapping[str, object]

_MAX_INTEGER = 2**31 - 1
_MAX_SHOWN_CHARS = 80


def read_json_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises UnreadableFileError if the file is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFileError(str(path), f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(str(path), f"is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UnreadableFileError(str(path), f"holds {show(content)}, expected a JSON object")
    return content


class Fields:
    """One JSON object of a config file.

    A null counts as absent, as it does for the programs that write the files.
    """

    def __init__(self, values: JsonObject, file: str, prefix: str = "") -> None:
        self._values = values
        self._file = file
        self._prefix = prefix

    @property
    def keys(self) -> list[str]:
        """All keys in the file's order, including those whose value is null."""
        return list(self._values)

    @property
    def is_empty(self) -> bool:
        """Whether no key has a value."""
        return all(value is None for value in self._values.values())

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def error(self, key: str, expected: str, found: str | None = None) -> ConfigError:
        """Return the error for an illegal value of a key; `found` defaults to that value."""
        if found is None:
            found = show(self._values[key]) if self.has(key) else "missing"
        return ConfigError(self._file, self._prefix + key, found, expected)

    def positive_int(self, key: str) -> int:
        return self.int_between(key, 1, _MAX_INTEGER)

    def int_between(self, key: str, low: int, high: int) -> int:
        value = self._values.get(key)
        if not is_int_between(value, low, high):
            expected = (
                "a positive integer"
                if (low, high) == (1, _MAX_INTEGER)
                else f"an integer from {low} to {high}"
            )
            raise self.error(key, expected)
        return value

    def number(self, key: str, *, positive: bool = True) -> float:
        """Return a finite number > 0, or >= 0 if `positive` is False."""
        number = as_number(self._values.get(key))
        if number is None or number < 0 or (positive and number == 0):
            raise self.error(key, "a finite number " + ("> 0" if positive else ">= 0"))
        return number

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings")
        return value

    def section(self, key: str) -> Fields:
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(value, self._file, f"{self._prefix}{key}.")

    def positive_numbers(self, key: str, length: int, why: str) -> tuple[float, ...]:
        """Return a list of exactly `length` finite numbers > 0; `why` explains the length in the error."""
        value = self._values.get(key)
        expected = f"a list of {length} positive numbers ({why})"
        if not isinstance(value, list):
            raise self.error(key, expected)
        numbers = [as_number(item) for item in value]
        valid = tuple(number for number in numbers if number is not None and number > 0)
        if len(valid) != len(numbers):
            at = next(i for i, number in enumerate(numbers) if number is None or number <= 0)
            raise ConfigError(
                self._file, f"{self._prefix}{key}[{at}]", show(value[at]), "a finite number > 0"
            )
        if len(valid) != length:
            raise self.error(key, expected, f"a list of {len(valid)}")
        return valid

    def ids(self, key: str, limit: int) -> tuple[int, ...]:
        """Return the token ids of a key that holds one id or a list of ids, each below `limit`."""
        value = self._values.get(key)
        items = value if isinstance(value, list) else [value]
        ids = tuple(item for item in items if is_int_between(item, 0, limit - 1))
        if len(ids) != len(items):
            raise self.error(key, f"a token id, or a list of token ids, from 0 to {limit - 1}")
        return ids


def is_int_between(value: object, low: int, high: int) -> TypeGuard[int]:
    # In Python a bool is an int, but JSON's true is not an integer.
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def as_number(value: object) -> float | None:
    """Return the value as a float; None for a string, a bool, NaN, an infinity or an int too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def show(value: object) -> str:
    """Return the value as JSON, cut to at most `_MAX_SHOWN_CHARS` characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."
