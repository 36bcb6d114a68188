"""How long an answer may take before its rows are sent to another holder as well. Pure: no clock.

Answers take longer with more rows, so times are kept by size, in powers of two of rows. Each is a peak that fades: a
process that computes unevenly is not suspected for its slower moments, and one slow moment is soon forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

_FACTOR = 4.0
"""An answer is late when it takes so many times as long as the recent peak."""
_UNKNOWN = 8.0
"""While nothing is known yet, in units of the shortest: the first answers of all are slow, but one that hangs must not
be waited for until its deadline."""
_FADING = 0.05
"""Share of the difference by which a peak sinks with each answer that is faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgeLimits:
    """Seconds."""

    shortest: float
    longest: float


class HedgeDelay:
    """Learns from answers of one kind of peer."""

    def __init__(self, limits: HedgeLimits) -> None:
        self._limits = limits
        self._peaks: dict[int, float] = {}

    def seconds(self, num_rows: int) -> float:
        """How long an answer to so many rows may take."""
        size = num_rows.bit_length()
        peak = self._peaks.get(size)
        if peak is None:
            peak = self._scaled(size)
        if peak is None:
            return min(_UNKNOWN * self._limits.shortest, self._limits.longest)
        return min(max(_FACTOR * peak, self._limits.shortest), self._limits.longest)

    def learn(self, num_rows: int, seconds: float) -> None:
        """An answer has come. One that was far too late counts as just late, so that a process that hung for a while
        does not make the next one be waited for as long; but if all are late, patience grows with each."""
        size = num_rows.bit_length()
        peak = self._peaks.get(size)
        if peak is None:
            self._peaks[size] = min(seconds, self.seconds(num_rows))
        elif seconds < peak:
            self._peaks[size] = peak + _FADING * (seconds - peak)
        else:
            self._peaks[size] = min(seconds, self.seconds(num_rows))

    def _scaled(self, size: int) -> float | None:
        """From the nearest size that is known, as if time grew with rows: too long rather than too short."""
        if not self._peaks:
            return None
        nearest = min(self._peaks, key=lambda known: (abs(known - size), known))
        return self._peaks[nearest] * 2.0 ** max(0, size - nearest)
