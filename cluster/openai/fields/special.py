"""Kinds that only one field uses: prompt, stop, logit_bias and chat_template_kwargs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.kinds.containers import MAX_TOKEN_ID, TOKEN_ID_SCHEMA, checked_ids, checked_list
from cluster.kinds.kind import Kind, Schema, shown
from cluster.kinds.scalars import Integer, Number, Text

Prompt: TypeAlias = str | tuple[int, ...]
"""A text or token ids."""


@dataclass(frozen=True, slots=True)
class Prompts(Kind):
    """A text, a list of texts, token ids, or a list of token ids. It is read as a tuple of prompts."""

    text: Text

    def read(self, name: str, value: Any, limits: Limits) -> tuple[Prompt, ...]:
        if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
            value = [value]
        elif not isinstance(value, list):
            expected = "a string, a list of strings, token ids or a list of token ids"
            raise InvalidRequest(f"{name}: {shown(value)} is not {expected}", name)
        if not value:
            raise InvalidRequest(f"{name}: is empty", name)
        prompts = checked_list(name, value, limits.max_prompts, "prompts")
        if len({type(prompt) for prompt in prompts}) > 1:
            raise InvalidRequest(f"{name}: mixes texts and token ids", name)
        return tuple([self._prompt(name, prompt, limits) for prompt in prompts])

    def _prompt(self, name: str, value: Any, limits: Limits) -> Prompt:
        if not isinstance(value, list):
            return self.text.read(name, value, limits)
        if not value:
            raise InvalidRequest(f"{name}: is empty", name)
        return checked_ids(name, value)

    def schema(self, limits: Limits) -> Schema:
        text = self.text.schema(limits)
        ids: Schema = {"type": "array", "minItems": 1, "items": TOKEN_ID_SCHEMA}
        several: Schema = {"type": "array", "minItems": 1, "maxItems": limits.max_prompts}
        return {"anyOf": [text, ids, {**several, "items": text}, {**several, "items": ids}]}


@dataclass(frozen=True, slots=True)
class StopStrings(Kind):
    """A text or a list of texts. It is read as a tuple without duplicates."""

    text: Text

    def read(self, name: str, value: Any, limits: Limits) -> tuple[str, ...]:
        texts = value if isinstance(value, list) else [value]
        checked = checked_list(name, texts, limits.max_stop_strings, "strings")
        return tuple(dict.fromkeys([self.text.read(name, text, limits) for text in checked]))

    def schema(self, limits: Limits) -> Schema:
        text = self.text.schema(limits)
        return {"anyOf": [text, {"type": "array", "items": text, "maxItems": limits.max_stop_strings}]}


@dataclass(frozen=True, slots=True)
class LogitBias(Kind):
    """An object from token ids, written in decimal digits, to numbers. It is read as a dict with int keys."""

    bias: Number

    def read(self, name: str, value: Any, limits: Limits) -> dict[int, float]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name}: {shown(value)} is not an object", name)
        if len(value) > limits.max_logit_bias:
            raise InvalidRequest(f"{name}: {len(value)} entries are more than {limits.max_logit_bias}", name)
        return {
            self._token_id(name, key, limits): self.bias.read(name, bias, limits)
            for key, bias in value.items()
        }

    @staticmethod
    def _token_id(name: str, key: str, limits: Limits) -> int:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequest(f"{name}: {shown(key)} is not a token id", name)
        return Integer(0, MAX_TOKEN_ID).read(name, int(key), limits)

    def schema(self, limits: Limits) -> Schema:
        return {
            "type": "object",
            "maxProperties": limits.max_logit_bias,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": self.bias.schema(limits),
        }


@dataclass(frozen=True, slots=True)
class TemplateVariables(Kind):
    """An object with any values for the chat template. Names that fields of the request have are refused."""

    reserved: frozenset[str]

    def read(self, name: str, value: Any, limits: Limits) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name}: {shown(value)} is not an object", name)
        reserved = next((key for key in value if key in self.reserved), None)
        if reserved is not None:
            inner = f"{name}.{reserved}"
            raise InvalidRequest(f"{inner}: is not the template's own; send {reserved} itself", inner)
        return value

    def schema(self, limits: Limits) -> Schema:
        return {"type": "object", "propertyNames": {"not": {"enum": sorted(self.reserved)}}}
