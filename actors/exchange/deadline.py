"""A point in time by which something must have happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """So many seconds from its creation, on the monotonic clock."""

    seconds: float
    at: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", time.monotonic() + self.seconds)

    @property
    def remaining_seconds(self) -> float:
        """Never below zero."""
        return max(0.0, self.at - time.monotonic())

    @property
    def remaining(self) -> timedelta:
        """At least a millisecond, since zero means "for ever" to some."""
        return timedelta(seconds=max(0.001, self.at - time.monotonic()))

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.at
