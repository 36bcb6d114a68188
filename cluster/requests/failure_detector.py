"""How long a dense actor may be silent before it counts as hung. Pure: durations in, a verdict out.

It beats several times a second whatever it computes. Where beats are seen to be irregular, on a machine with more work
than cores, the allowance grows with the longest silence that ended by itself, and shrinks again as time goes by.
"""

from __future__ import annotations

import math

TICK_SECONDS = 0.05
"""How often `passed` is to be called."""
MOST_SECONDS = 5.0
"""No silence longer than this is ever allowed, unless the least one is."""
_MOST_CREDIT_SECONDS = 0.2
"""What one call counts at most; whoever comes later than that was asleep."""
_STRETCH = 3.0
"""Allowed silence, in units of the longest that ended by itself."""
_TIMEOUT_GROWTH = 1.5
_FORGET_SECONDS = 30.0
"""After this time a long silence counts for 1/e of what it was."""


class FailureDetector:
    """Of one dense actor, over all connections to it."""

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._longest = 0.0
        self._quiet = 0.0
        self._is_heard = False

    @property
    def allowed_seconds(self) -> float:
        """The silence after which it counts as hung."""
        return max(self._least_seconds, min(_STRETCH * self._longest, MOST_SECONDS))

    def heard(self) -> None:
        """A frame has come."""
        self._longest = max(self._quiet, self._longest)
        self._quiet = 0.0
        self._is_heard = True

    def passed(self, seconds: float) -> bool:
        """Time went by without a frame since the last call; whether that was too long.

        Only time counts in which the listener itself was awake: of a call that comes late, most was its own sleep, and
        frames of that time are still to be read.
        """
        self._longest *= math.exp(-seconds / _FORGET_SECONDS)
        if self._is_heard:
            self._is_heard = False  # Some of this time went by before that frame.
        else:
            self._quiet += min(seconds, _MOST_CREDIT_SECONDS)
        return self._quiet > self.allowed_seconds

    def begin(self) -> None:
        """A new connection. Where silence ended the one before, a little more is allowed, should that have been wrong."""
        if self._quiet > self.allowed_seconds:
            self._longest = _TIMEOUT_GROWTH * self.allowed_seconds / _STRETCH
        self._quiet = 0.0
