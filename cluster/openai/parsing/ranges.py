"""The ranges of the numbers in a request: what the parser checks and the served OpenAPI document says."""

from __future__ import annotations

from cluster.openai.parsing.fields import Fields

MAX_TOKEN_ID = 2**31 - 1
"""Bound that needs no vocabulary; the vocabulary's own is checked when the request is prepared."""
MAX_COUNT = 2**31 - 1
MAX_MODEL_CHARS = 512
MAX_SALT_CHARS = 256
MIN_LOGIT_BIAS, MAX_LOGIT_BIAS = -100, 100

INTEGERS = {
    "seed": (-(2**63), 2**64 - 1),
    "top_k": (-1, MAX_COUNT),
    "min_tokens": (0, MAX_COUNT),
    "truncate_prompt_tokens": (-1, MAX_COUNT),
}
"""Field -> lowest and highest value."""

NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 10.0),
}
"""The same for numbers that need not be whole."""

ABOVE_LOW = frozenset({"top_p", "repetition_penalty"})
"""Numbers that must be greater than their lowest."""


def integer(fields: Fields, name: str) -> int | None:
    """A field of INTEGERS; None where there is none. Raises InvalidRequest."""
    low, high = INTEGERS[name]
    return fields.integer(name, low, high)


def number(fields: Fields, name: str) -> float | None:
    """A field of NUMBERS; None where there is none. Raises InvalidRequest."""
    low, high = NUMBERS[name]
    return fields.number(name, low, high, is_low_open=name in ABOVE_LOW)
