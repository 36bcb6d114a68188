"""A point in time by which something must have happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """The point in time `seconds` after its creation."""

    seconds: float
    at: float = field(init=False)
    """On the monotonic clock."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", time.monotonic() + self.seconds)

    @property
    def remaining_seconds(self) -> float:
        """Seconds that are left, never below zero."""
        return max(0.0, self.at - time.monotonic())

    @property
    def remaining(self) -> timedelta:
        """Time that is left, at least a millisecond, since some functions take zero as "for ever"."""
        return timedelta(seconds=max(0.001, self.at - time.monotonic()))

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.at
