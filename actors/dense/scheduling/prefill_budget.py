"""How many tokens of prompts may join the sequences that decode. Pure: durations in, a number out.

A step with prompts in it takes longer, and every sequence that decodes waits for it. What they add is measured, as a part
that does not depend on their number (more of the model is read, another path is taken) and one for each token:

    added seconds = fixed + tokens * per token

Taken together they would make short pieces of prompts seem dear, and so keep them short. The pace lets a step take
`max_stretch` times as long as its decoding alone:

    tokens = ((max_stretch - 1) * seconds of a step that only decodes - fixed) / per token

The decoding alone depends on how many sequences decode, so it is kept per power of two of them; where that was not
measured for a while, a step without prompts is asked for.

Where more sequences wait for their prompt than decode, as at the start of a burst, there is no bound: the many would wait
longer, for the few, than the other way round, since every further step reads all weights again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_WEIGHT = 0.25
"""Of the newest measurement in a running mean."""
_MOST_OUTLIER = 4.0
_MEASURE_EVERY = 32
"""ModelRunner with prompts after which the decoding alone is measured again."""
_LEAST_TOKENS = 16
"""Prompts make progress however slow the machine is."""


class PrefillBudget:
    """Told of every step; `max_prefill_tokens` is for the next one."""

    def __init__(self, max_stretch: float, max_batch_tokens: int) -> None:
        self._max_stretch = max_stretch
        self._max_tokens = max_batch_tokens
        self._decode_seconds: dict[int, float] = {}
        """By bit length of the number of sequences that decode."""
        self._added = _AddedSeconds()
        self._num_mixed = 0

    def max_prefill_tokens(self, num_decodes: int, num_prefills: int) -> int:
        """For a step in which so many sequences decode and so many could compute of their prompts; 0 asks for a step
        without prompts."""
        if num_decodes < num_prefills or num_decodes == 0:
            return self._max_tokens
        size = num_decodes.bit_length()
        if size not in self._decode_seconds or self._num_mixed >= _MEASURE_EVERY:
            return 0
        tokens = self._added.tokens_within((self._max_stretch - 1) * self._decode_seconds[size])
        # A power of two: kernels are compiled and kept by shape.
        rounded = 1 << max(int(tokens), 1).bit_length() - 1
        return min(max(rounded, _LEAST_TOKENS), self._max_tokens)

    def note_step(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step was computed."""
        size = num_decodes.bit_length()
        alone = self._decode_seconds.get(size)
        if num_prefill_tokens == 0:
            self._decode_seconds[size] = _mean(alone, seconds)
            self._num_mixed = 0
        elif num_decodes > 0:
            self._num_mixed += 1
            if alone is not None:
                # A step that waited for an expert actor says nothing of the next one.
                most = _MOST_OUTLIER * (alone + self._added.seconds_of(num_prefill_tokens))
                self._added.note(num_prefill_tokens, min(seconds, most) - alone)


class _AddedSeconds:
    """What prompts added to steps: a running mean for each power of two of tokens, and the line through these means
    (least squares; a size counts the less the longer ago it came)."""

    _HALF_AS_MUCH_STEPS = 8
    """A size that came last so many steps ago counts half."""
    _RECENT_STEPS = 64

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._num_steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """So many tokens took so much longer than decoding alone."""
        self._num_steps += 1
        size = self._sizes.setdefault(tokens.bit_length(), _Size(float(tokens), seconds))
        size.tokens += _WEIGHT * (tokens - size.tokens)
        size.seconds += _WEIGHT * (seconds - size.seconds)
        size.step = self._num_steps

    def seconds_of(self, tokens: int) -> float:
        """What so many may be expected to add: anything, where nothing was measured yet."""
        if not self._sizes:
            return math.inf
        fixed, per_token = self._line()
        return fixed + per_token * tokens

    def tokens_within(self, seconds: float) -> float:
        """How many may join where this is what they may add: at most twice as many as were tried of late, and so many
        where only one size ever was, since one point makes no line."""
        if not self._sizes:
            return 0.0
        oldest = self._num_steps - self._RECENT_STEPS
        most = 2 * max(size.tokens for size in self._sizes.values() if size.step > oldest)
        fixed, per_token = self._line()
        if len(self._sizes) == 1 or per_token == 0:
            return most
        return min(max(seconds - fixed, 0.0) / per_token, most)

    def _line(self) -> tuple[float, float]:
        """Seconds that are fixed, and seconds per token; neither is negative."""
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
    """Of steps with about as many tokens of prompts: running means, and when one came last."""

    tokens: float
    seconds: float
    step: int = 0


def _mean(known: float | None, newest: float) -> float:
    if known is None:
        return newest
    # A step that waited for an expert actor says nothing of the next one.
    return (1 - _WEIGHT) * known + _WEIGHT * min(newest, _MOST_OUTLIER * known)
