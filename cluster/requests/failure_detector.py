"""Decides when a dense actor that sends nothing counts as hung. Pure: durations in, a decision out.

A dense actor sends a heartbeat several times a second, whatever it computes. If heartbeats are irregular, on
a machine with more work than cores, the longest pause that ended by itself raises the time-out; with time it
falls again.
"""

from __future__ import annotations

import math

TICK_SECONDS = 0.05
"""Interval at which `passed` should be called."""
MOST_SECONDS = 5.0
"""Longest time-out, unless `least_seconds` is longer."""
_MOST_CREDIT_SECONDS = 0.2
"""Longest time that one call of `passed` counts. If a call comes later than that, its caller did not run
meanwhile."""
_STRETCH = 3.0
"""The time-out, in units of the longest pause that ended by itself."""
_TIMEOUT_GROWTH = 1.5
"""Factor by which the time-out grows for the connection after one that was given up."""
_FORGET_SECONDS = 30.0
"""Time in which the weight of a long pause falls to 1/e."""


class FailureDetector:
    """Detects that one dense actor hangs; it is kept over all connections to the actor."""

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._longest = 0.0
        self._quiet = 0.0
        self._is_heard = False

    @property
    def allowed_seconds(self) -> float:
        """The time-out: how long the actor may send nothing before it counts as hung."""
        return max(self._least_seconds, min(_STRETCH * self._longest, MOST_SECONDS))

    def heard(self) -> None:
        """Note that a frame has arrived."""
        self._longest = max(self._quiet, self._longest)
        self._quiet = 0.0
        self._is_heard = True

    def passed(self, seconds: float) -> bool:
        """Note that `seconds` have passed since the last call; return whether the actor counts as hung.

        Only time in which the caller itself ran counts. If a call comes late, the caller was held up for most
        of the time, and frames that arrived meanwhile are still unread.
        """
        self._longest *= math.exp(-seconds / _FORGET_SECONDS)
        if self._is_heard:
            self._is_heard = False  # A part of this time passed before the frame.
        else:
            self._quiet += min(seconds, _MOST_CREDIT_SECONDS)
        return self._quiet > self.allowed_seconds

    def begin(self) -> None:
        """Note that a connection begins.

        If the last connection ended by a time-out, the time-out grows a little, since the actor may not have
        hung.
        """
        if self._quiet > self.allowed_seconds:
            self._longest = _TIMEOUT_GROWTH * self.allowed_seconds / _STRETCH
        self._quiet = 0.0
