"""How many tokens of prompts may join the sequences that decode. Pure: durations in, a number out.

A step with prompts in it takes longer, and every sequence that decodes waits for it. The pace lets it take at most
`max_stretch` times as long as the decoding alone:

    prefill tokens = (max_stretch - 1) * seconds of a step that only decodes / seconds per prefill token

Both are measured. The first depends on how many sequences decode, so it is kept per power of two of them; where that was
not measured for a while, a step without prompts is asked for.

Where more sequences wait for their prompt than decode, as at the start of a burst, there is no bound: the many would wait
longer, for the few, than the other way round, since every further step reads all weights again.
"""

from __future__ import annotations

_WEIGHT = 0.25
"""Of the newest measurement in a running mean."""
_MOST_OUTLIER = 4.0
_MEASURE_EVERY = 32
"""Steps with prompts after which the decoding alone is measured again."""
_LEAST_TOKENS = 16
"""Prompts make progress however slow the machine is."""


class PrefillPace:
    """Told of every step; `max_prefill_tokens` is for the next one."""

    def __init__(self, max_stretch: float, max_batch_tokens: int) -> None:
        self._max_stretch = max_stretch
        self._max_tokens = max_batch_tokens
        self._decode_seconds: dict[int, float] = {}
        """By bit length of the number of sequences that decode."""
        self._token_seconds: float | None = None
        self._num_mixed = 0

    def max_prefill_tokens(self, num_decodes: int, num_prefills: int) -> int:
        """For a step in which so many sequences decode and so many could compute of their prompts; 0 asks for a step
        without prompts."""
        if num_decodes < num_prefills or num_decodes == 0:
            return self._max_tokens
        size = num_decodes.bit_length()
        if size not in self._decode_seconds or self._num_mixed >= _MEASURE_EVERY:
            return 0
        if not self._token_seconds:
            return min(_LEAST_TOKENS, self._max_tokens)
        tokens = int((self._max_stretch - 1) * self._decode_seconds[size] / self._token_seconds)
        # A power of two: kernels are compiled and kept by shape.
        rounded = 1 << max(tokens, 1).bit_length() - 1
        return min(max(rounded, _LEAST_TOKENS), self._max_tokens)

    def note_step(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step was computed."""
        size = num_decodes.bit_length()
        if num_prefill_tokens == 0:
            self._decode_seconds[size] = _mean(self._decode_seconds.get(size), seconds)
            self._num_mixed = 0
            return
        if num_decodes > 0:
            self._num_mixed += 1
        alone = self._decode_seconds.get(size, 0.0) if num_decodes > 0 else 0.0
        per_token = max(0.0, seconds - alone) / num_prefill_tokens
        # The few tokens of a short prompt cost what a step costs; they say nothing of a long one's.
        if num_prefill_tokens >= _LEAST_TOKENS or self._token_seconds is None:
            self._token_seconds = _mean(self._token_seconds, per_token)


def _mean(known: float | None, newest: float) -> float:
    if known is None:
        return newest
    # A step that waited for an expert actor says nothing of the next one.
    return (1 - _WEIGHT) * known + _WEIGHT * min(newest, _MOST_OUTLIER * known)
