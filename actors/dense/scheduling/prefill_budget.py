"""How many prompt tokens may join a step that also decodes. Pure: durations in, a number out.

A step with prompt tokens in it takes longer, and every sequence that decodes waits for it. The time that
these tokens add is measured as two parts. One does not depend on their number (more of the model is read,
another code path is taken); the other is proportional to it:

    added seconds = fixed + tokens * per token

If both were measured as one number per token, short chunks would seem expensive and the budget would keep
them short. The budget lets a step take `max_stretch` times as long as its decoding alone:

    tokens = ((max_stretch - 1) * seconds of a step that only decodes - fixed) / per token

The time of decoding alone depends on how many sequences decode, so it is kept for each power of two of that
number. If it was not measured for a while, the budget asks for a step without prompt tokens.

If more sequences wait for their prompt than decode, as at the start of a burst, there is no bound. Every
further step reads all weights again, so a bound would make the many wait longer than it saves the few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_WEIGHT = 0.25
"""Weight of the newest measurement in a running mean."""
_MOST_OUTLIER = 4.0
"""A measurement counts as at most this many times the expected duration."""
_MEASURE_EVERY = 32
"""Number of steps with prompt tokens after which decoding alone is measured again."""
_LEAST_TOKENS = 16
"""Least budget in tokens, so that prompts make progress even on a slow machine."""


class PrefillBudget:
    """The budget of one dense actor. It is told of every step; `max_prefill_tokens` answers for the next
    one."""

    def __init__(self, max_stretch: float, max_batch_tokens: int) -> None:
        self._max_stretch = max_stretch
        self._max_tokens = max_batch_tokens
        self._decode_seconds: dict[int, float] = {}
        """Seconds of a step that only decodes, by the bit length of the number of sequences that decode."""
        self._added = _AddedSeconds()
        self._num_mixed = 0

    def max_prefill_tokens(self, num_decodes: int, num_prefills: int) -> int:
        """Prompt tokens that may be in a step in which `num_decodes` sequences decode while `num_prefills`
        others have prompt tokens left to compute. 0 asks for a step without prompt tokens."""
        if num_decodes < num_prefills or num_decodes == 0:
            return self._max_tokens
        size = num_decodes.bit_length()
        if size not in self._decode_seconds or self._num_mixed >= _MEASURE_EVERY:
            return 0
        tokens = self._added.tokens_within((self._max_stretch - 1) * self._decode_seconds[size])
        # The budget is a power of two because kernels are compiled and kept by shape.
        rounded = 1 << max(int(tokens), 1).bit_length() - 1
        return min(max(rounded, _LEAST_TOKENS), self._max_tokens)

    def note_step(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """Record the duration of a computed step."""
        size = num_decodes.bit_length()
        alone = self._decode_seconds.get(size)
        if num_prefill_tokens == 0:
            self._decode_seconds[size] = _mean(alone, seconds)
            self._num_mixed = 0
        elif num_decodes > 0:
            self._num_mixed += 1
            if alone is not None:
                # If a step waited for an expert actor, its duration says nothing about the next step.
                most = _MOST_OUTLIER * (alone + self._added.seconds_of(num_prefill_tokens))
                self._added.note(num_prefill_tokens, min(seconds, most) - alone)


class _AddedSeconds:
    """Seconds that prompt tokens added to steps: a running mean for each power of two of the number of
    tokens, and the line through these means by weighted least squares. A size counts less the longer ago it
    was measured."""

    _HALF_AS_MUCH_STEPS = 8
    """Age in steps at which a size counts half as much as a new one."""
    _RECENT_STEPS = 64

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._num_steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """Record that a step with `tokens` prompt tokens took `seconds` longer than decoding alone."""
        self._num_steps += 1
        size = self._sizes.setdefault(tokens.bit_length(), _Size(float(tokens), seconds))
        size.tokens += _WEIGHT * (tokens - size.tokens)
        size.seconds += _WEIGHT * (seconds - size.seconds)
        size.step = self._num_steps

    def seconds_of(self, tokens: int) -> float:
        """Seconds that `tokens` prompt tokens are expected to add; infinity if nothing was measured yet."""
        if not self._sizes:
            return math.inf
        fixed, per_token = self._line()
        return fixed + per_token * tokens

    def tokens_within(self, seconds: float) -> float:
        """Prompt tokens that fit into `seconds` of added step time; never more than twice the largest recent
        size. With one size measured there is no line to fit, so that bound is the answer."""
        if not self._sizes:
            return 0.0
        oldest = self._num_steps - self._RECENT_STEPS
        most = 2 * max(size.tokens for size in self._sizes.values() if size.step > oldest)
        fixed, per_token = self._line()
        if len(self._sizes) == 1 or per_token == 0:
            return most
        return min(max(seconds - fixed, 0.0) / per_token, most)

    def _line(self) -> tuple[float, float]:
        """The fixed seconds and the seconds per token of the line; neither is negative."""
        sizes = list(self._sizes.values())
        ages = [self._num_steps - size.step for size in sizes]
        weights = [1 / (self._HALF_AS_MUCH_STEPS + age) for age in ages]

        def mean(values: Iterable[float]) -> float:
            return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

        mean_tokens = mean(size.tokens for size in sizes)
        mean_seconds = max(0.0, mean(size.seconds for size in sizes))
        variance = mean((size.tokens - mean_tokens) ** 2 for size in sizes)
        covariance = mean((size.tokens - mean_tokens) * (size.seconds - mean_seconds) for size in sizes)
        most = mean_seconds / mean_tokens
        per_token = min(max(covariance / variance, 0.0), most) if variance > 0 else most
        return mean_seconds - per_token * mean_tokens, per_token


@dataclass(slots=True)
class _Size:
    """Running means over steps with about the same number of prompt tokens, and the number of the last such
    step."""

    tokens: float
    seconds: float
    step: int = 0


def _mean(known: float | None, newest: float) -> float:
    if known is None:
        return newest
    # If a step waited for an expert actor, its duration says nothing about the next step.
    return (1 - _WEIGHT) * known + _WEIGHT * min(newest, _MOST_OUTLIER * known)
