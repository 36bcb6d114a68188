"""How long an answer may take before its rows are sent to another holder as well. Pure: no clock.

Answers take longer with more rows, so recent times are kept by size, in powers of two of rows. The value for
a size is a peak that fades: a process that computes unevenly is not suspected for its slower moments, and a
single slow moment is soon forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

_FACTOR = 4.0
"""An answer is late when it takes this many times as long as the recent peak."""
_UNKNOWN = 8.0
"""Delay while no answer was seen yet, in units of the shortest delay. The first answers are slow, but a peer
that hangs must not hold the step up until its deadline."""
_FADING = 0.05
"""A faster answer lowers the peak by this share of the difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgeLimits:
    """Bounds of the delay, in seconds."""

    shortest: float
    longest: float


class HedgeDelay:
    """Learns the usual time of an answer from the answers of all peers, and derives the delay from it."""

    def __init__(self, limits: HedgeLimits) -> None:
        self._limits = limits
        self._peaks: dict[int, float] = {}

    def seconds(self, num_rows: int) -> float:
        """How long an answer of `num_rows` results may take before it is late."""
        size = num_rows.bit_length()
        peak = self._peaks.get(size)
        if peak is None:
            peak = self._scaled(size)
        if peak is None:
            return min(_UNKNOWN * self._limits.shortest, self._limits.longest)
        return min(max(_FACTOR * peak, self._limits.shortest), self._limits.longest)

    def learn(self, num_rows: int, seconds: float) -> None:
        """Record that an answer of `num_rows` results took `seconds`.

        An answer that was far too late counts as just late, so a process that hung for a while does not make
        the next wait as long. If all answers are late, the delay grows with each of them.
        """
        size = num_rows.bit_length()
        peak = self._peaks.get(size)
        if peak is None:
            self._peaks[size] = min(seconds, self.seconds(num_rows))
        elif seconds < peak:
            self._peaks[size] = peak + _FADING * (seconds - peak)
        else:
            self._peaks[size] = min(seconds, self.seconds(num_rows))

    def _scaled(self, size: int) -> float | None:
        """A peak for this size, from the nearest known size; None if none is known.

        A larger size counts as proportionally slower, a smaller one as no faster: the guess is rather too
        long than too short.
        """
        if not self._peaks:
            return None
        nearest = min(self._peaks, key=lambda known: (abs(known - size), known))
        return self._peaks[nearest] * 2.0 ** max(0, size - nearest)
