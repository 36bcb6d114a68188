"""How much an ingress replica takes on, and when a client that was refused should come again. Pure: no clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_REMEMBERED = 64
"""Completions from which the rate is measured."""
_SHARE_TO_FREE = 0.25
"""A refused client is asked to come when this share of the places is free: many come at once."""
_UNKNOWN_SECONDS = 1
_MAX_RETRY_SECONDS = 60
SEQUENCE_TOKENS = 64
"""What a sequence weighs beside the tokens of its prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What may be under way at once."""

    max_requests: int
    max_tokens: int
    """Prompt tokens of all sequences, each of them counted SEQUENCE_TOKENS more; bounds the memory."""


class Admission:
    """Counts what is under way. Times are seconds of any clock that only goes forward."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._ended: deque[float] = deque(maxlen=_REMEMBERED)
        self.num_requests = 0
        self.num_tokens = 0

    def refusal(self, num_tokens: int = 0) -> str | None:
        """Why a request of so many tokens cannot be taken on now; None where it can. Alone, it always can."""
        bounds = self._bounds
        if self.num_requests >= bounds.max_requests:
            return f"{self.num_requests} requests are under way, which is the most at a time"
        if self.num_requests and self.num_tokens + num_tokens > bounds.max_tokens:
            return f"{self.num_tokens} tokens of prompts are under way, {bounds.max_tokens} are the most at a time"
        return None

    def begin(self, num_tokens: int) -> None:
        """A request was taken on."""
        self.num_requests += 1
        self.num_tokens += num_tokens

    def end(self, num_tokens: int, now: float) -> None:
        """It has ended, in whatever way."""
        self.num_requests -= 1
        self.num_tokens -= num_tokens
        self._ended.append(now)

    def retry_after_seconds(self, now: float) -> int:
        """When a quarter of the places will be free at the rate of the last completions: 1 to 60 seconds."""
        if len(self._ended) < 2 or now <= self._ended[0]:
            return _UNKNOWN_SECONDS
        rate = len(self._ended) / (now - self._ended[0])
        seconds = math.ceil(_SHARE_TO_FREE * self._bounds.max_requests / rate)
        return min(max(seconds, 1), _MAX_RETRY_SECONDS)
