"""Makes calls and arrival times from a seed or a dataset file. All is pure except the reading of the file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

FIRST_TOKEN_ID = 300
LAST_TOKEN_ID = 4000
"""Range of the ids in random prompts. In every vocabulary these are ordinary tokens, not special ones or
single bytes."""

WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community "
    "name president team minute idea body back parent"
)
"""Words for chat prompts, since a chat message cannot be given as ids. Most of them are one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An inclusive range of token counts."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"token range is {self.low}-{self.high}, expected 1 <= low <= high")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def at_most(self, limit: int) -> Span:
        """This range without the counts above `limit`."""
        return Span(low=min(self.low, limit), high=min(self.high, limit))

    def draw(self, source: random.Random) -> int:
        """Draw one count; all are equally likely."""
        return source.randint(self.low, self.high)


def parse_span(text: str) -> Span:
    """A range from a text such as `64` or `32-128`. Raises ValueError for any other text."""
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise ValueError(f"token range is {text!r}, expected a number or LOW-HIGH")
    return Span(low=int(low), high=int(high if dash else low))


def fit_lengths(prompt: Span, output: Span, max_model_len: int) -> tuple[Span, Span]:
    """Ranges of prompt and output tokens whose longest values fit into the context together.

    If they do not fit, the prompt may take the part of the context that the output leaves, and at least half
    of it.
    """
    prompt = prompt.at_most(max(max_model_len - output.high, max_model_len // 2, 1))
    return prompt, output.at_most(max(max_model_len - prompt.high, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. Exactly one of `token_ids`, `text` and `messages` is set."""

    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCalls:
    """Calls with random prompts of given lengths."""

    endpoint: str
    """"completions" (prompts are token ids) or "chat" (prompts are about as many words)."""
    prompt_tokens: Span
    output_tokens: Span
    vocab: int = LAST_TOKEN_ID + 1
    """Size of the model's vocabulary; all ids of prompts are smaller."""
    phrase_tokens: int | None = None
    """Every prompt repeats the same `phrase_tokens` tokens (or words); None for prompts without
    repetition."""

    def __post_init__(self) -> None:
        if self.vocab < 2:
            raise ValueError(f"vocab is {self.vocab}, expected at least 2")
        if self.phrase_tokens is not None and self.phrase_tokens < 1:
            raise ValueError(f"phrase_tokens is {self.phrase_tokens}, expected at least 1")

    def fitted(self, vocab: int, max_model_len: int | None) -> RandomCalls:
        """These calls for a model with this vocabulary and context."""
        if max_model_len is None:
            return replace(self, vocab=vocab)
        prompt, output = fit_lengths(self.prompt_tokens, self.output_tokens, max_model_len)
        return replace(self, vocab=vocab, prompt_tokens=prompt, output_tokens=output)

    def make(self, count: int, seed: int) -> list[Call]:
        """Draw `count` calls. The same seed gives the same calls; two prompts share tokens only by chance."""
        source = random.Random(seed)
        return [self._one(source) for _ in range(count)]

    def _one(self, source: random.Random) -> Call:
        num_prompt, max_tokens = self.prompt_tokens.draw(source), self.output_tokens.draw(source)
        if self.endpoint == "chat":
            content = " ".join(self._repeated(source, WORDS.split(), num_prompt))
            return Call(max_tokens=max_tokens, messages=({"role": "user", "content": content},))
        last = min(LAST_TOKEN_ID, self.vocab - 1)
        first = FIRST_TOKEN_ID if last >= FIRST_TOKEN_ID else 1
        token_ids = self._repeated(source, range(first, last + 1), num_prompt)
        return Call(max_tokens=max_tokens, token_ids=tuple(token_ids))

    def _repeated(self, source: random.Random, choices: Sequence[_T], count: int) -> list[_T]:
        phrase = source.choices(choices, k=min(count, self.phrase_tokens or count))
        return (phrase * count)[:count]


def read_dataset(path: Path, endpoint: str, output_tokens: Span, seed: int) -> list[Call]:
    """Read the calls of a JSONL file. Each line is an object with `prompt` (text or token ids) or `messages`.

    `max_tokens` in a line is kept, otherwise drawn from `output_tokens`. For the chat endpoint a text prompt
    becomes one user message. Raises ValueError that names file and line.
    """
    source = random.Random(seed)
    calls = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read dataset {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                calls.append(_read_line(json.loads(line), endpoint, output_tokens.draw(source)))
            except ValueError as error:
                raise ValueError(f"dataset {path}, line {number}: {error}") from error
    if not calls:
        raise ValueError(f"dataset {path} holds no request")
    return calls


def _read_line(content: object, endpoint: str, default_max_tokens: int) -> Call:
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    max_tokens = content.get("max_tokens", default_max_tokens)
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens!r}, expected a whole number from 1 on")
    prompt, messages = content.get("prompt"), content.get("messages")
    if endpoint == "chat":
        if isinstance(prompt, str) and messages is None:
            messages = [{"role": "user", "content": prompt}]
        if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
            raise ValueError("expected messages, or prompt as a text")
        return Call(max_tokens=max_tokens, messages=tuple(messages))
    if isinstance(prompt, str):
        return Call(max_tokens=max_tokens, text=prompt)
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return Call(max_tokens=max_tokens, token_ids=tuple(prompt))
    raise ValueError("expected prompt, a text or a list of token ids (messages need --endpoint chat)")


def repeat_calls(calls: list[Call], count: int) -> list[Call]:
    """The first `count` calls, repeated from the beginning as often as needed."""
    return [calls[index % len(calls)] for index in range(count)]


def arrival_seconds(rate: float, count: int, seed: int) -> Iterator[float]:
    """The times of `count` requests in seconds after the start, from a Poisson process of `rate` per second.

    The first one is sent at 0, the gaps are exponential with mean 1 / rate.
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}, expected more than 0 requests/s")
    source, now = random.Random(seed), 0.0
    for _ in range(count):
        yield now
        now += source.expovariate(rate)
