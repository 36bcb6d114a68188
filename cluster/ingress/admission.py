"""How many requests and tokens an ingress replica accepts, and when a refused client should retry.

Pure: no clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_REMEMBERED = 64
"""Number of the latest completions from which the completion rate is measured."""
_SHARE_TO_FREE = 0.25
"""Share of the request limit that should be free when refused clients retry, since many retry together."""
_UNKNOWN_SECONDS = 1
_MAX_RETRY_SECONDS = 60
SEQUENCE_TOKENS = 64
"""Tokens that each sequence counts for beside the tokens of its prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The most that may be under way at once."""

    max_requests: int
    max_tokens: int
    """Prompt tokens of all sequences, plus SEQUENCE_TOKENS for each sequence.

    This bounds the memory in use.
    """


class Admission:
    """Counts the requests and tokens under way. Times are in seconds, from any clock that never goes back."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._ended: deque[float] = deque(maxlen=_REMEMBERED)
        self.num_requests = 0
        self.num_tokens = 0

    def refusal(self, num_tokens: int = 0) -> str | None:
        """Return why a request of `num_tokens` cannot be accepted now, or None if it can.

        While no other request is under way, a request of any size is accepted.
        """
        bounds = self._bounds
        if self.num_requests >= bounds.max_requests:
            return f"{self.num_requests} requests are under way, which is the most at a time"
        if self.num_requests and self.num_tokens + num_tokens > bounds.max_tokens:
            return (
                f"{self.num_tokens} tokens of prompts are under way,"
                f" {bounds.max_tokens} are the most at a time"
            )
        return None

    def begin(self, num_tokens: int) -> None:
        """Count a request that was accepted."""
        self.num_requests += 1
        self.num_tokens += num_tokens

    def end(self, num_tokens: int, now: float) -> None:
        """Count the end of an accepted request, whether it succeeded or not."""
        self.num_requests -= 1
        self.num_tokens -= num_tokens
        self._ended.append(now)

    def retry_after_seconds(self, now: float) -> int:
        """Return the seconds after which a refused client should retry: 1 to 60.

        At the rate of the latest completions, a quarter of the request limit will be free by then.
        """
        if len(self._ended) < 2 or now <= self._ended[0]:
            return _UNKNOWN_SECONDS
        rate = len(self._ended) / (now - self._ended[0])
        seconds = math.ceil(_SHARE_TO_FREE * self._bounds.max_requests / rate)
        return min(max(seconds, 1), _MAX_RETRY_SECONDS)
