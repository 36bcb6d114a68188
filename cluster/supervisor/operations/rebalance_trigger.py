"""Decides when to rebalance without a command: measured loads over time, then hysteresis.

Pure: it reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cluster.supervisor.placement.local_search import Matrix

Counts = tuple[tuple[int, ...], ...]
"""Rows routed since a process started, [layer][expert]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentLoads:
    """Rows per expert, summed over all dense actors. A row counts half after `half_life_seconds`."""

    half_life_seconds: float = 120.0
    at: float = 0.0
    rows: Matrix | None = None
    seen: tuple[tuple[str, Counts], ...] = ()
    """The counts in the last report of each process, by incarnation."""

    def add(self, incarnation: str, counts: Counts, now: float) -> RecentLoads:
        """Return the loads with a dense actor's new counts added. Its first report counts from its start.

        `counts` may have fewer layers than the model while the actor's first step is under way.
        """
        if not counts:
            return self
        before = dict(self.seen).get(incarnation)
        new = np.asarray(counts, dtype=np.float64)
        num_layers = max(len(counts), 0 if self.rows is None else len(self.rows))
        new = _with_layers(new, num_layers)
        if before is not None:
            new = np.maximum(new - _with_layers(np.asarray(before, dtype=np.float64), num_layers), 0)
        if self.rows is not None:
            fading = 0.5 ** (max(0.0, now - self.at) / self.half_life_seconds)
            new = new + _with_layers(self.rows, num_layers) * fading
        seen = tuple(item for item in self.seen if item[0] != incarnation)
        return replace(self, at=now, rows=new, seen=(*seen[-_MOST_SEEN:], (incarnation, counts)))

    def loads(self) -> list[list[float]] | None:
        """Return the rows, [layer][expert], or None if too few rows were seen to compare experts."""
        if self.rows is None or self.rows.sum() < self.rows.size * _LEAST_ROWS:
            return None
        rows: list[list[float]] = self.rows.tolist()
        return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Hysteresis:
    """Asks for a rebalance once the gain has been `threshold` or more during all of `interval_seconds`.

    Each rebalance ends the gain, so the next rebalance comes at least another interval later.
    """

    threshold: float
    interval_seconds: float
    """0 means that no rebalance is ever asked for."""
    since: float | None = None
    """When the gain reached the threshold; None while it is below."""

    def watch(self, gain: float, now: float) -> tuple[Hysteresis, bool]:
        """Return the state after the gain was measured at `now`, and whether to rebalance now."""
        if self.interval_seconds == 0 or gain < self.threshold:
            return replace(self, since=None), False
        if self.since is None:
            return replace(self, since=now), False
        if now - self.since < self.interval_seconds:
            return self, False
        return replace(self, since=None), True


def _with_layers(rows: Matrix, num_layers: int) -> Matrix:
    """Return the rows as [num_layers, E], with zeros for the layers that are missing."""
    return np.pad(rows, ((0, num_layers - len(rows)), (0, 0)))


_LEAST_ROWS = 32
"""Mean rows per layer and expert that must have been seen before experts are compared."""
_MOST_SEEN = 64
"""Number of other processes whose last counts are kept."""
