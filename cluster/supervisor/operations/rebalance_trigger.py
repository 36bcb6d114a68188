"""When to rebalance without being asked: measured loads over time, and the decision with hysteresis. Pure: no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cluster.supervisor.placement.local_search import Matrix

Counts = tuple[tuple[int, ...], ...]
"""Rows routed since a process began, [layer][expert]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentLoads:
    """Rows of the last minutes, summed over all dense actors; older ones count less."""

    half_life_seconds: float = 120.0
    at: float = 0.0
    rows: Matrix | None = None
    seen: tuple[tuple[str, Counts], ...] = ()
    """What each process had counted when it was last asked."""

    def add(self, incarnation: str, counts: Counts, now: float) -> RecentLoads:
        """With what a dense actor counts now; its first report counts from its start.

        One whose first step is under way has not counted all layers yet.
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
        """[layer][expert], or None where too few rows were seen to tell experts apart."""
        if self.rows is None or self.rows.sum() < self.rows.size * _LEAST_ROWS:
            return None
        rows: list[list[float]] = self.rows.tolist()
        return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Hysteresis:
    """Rebalance once the gain has been above `threshold` for `interval_seconds` without a break.

    After a rebalance the gain is gone, so the next one cannot follow before another interval has passed.
    """

    threshold: float
    interval_seconds: float
    """0 means never."""
    since: float | None = None
    """When the gain rose above the threshold."""

    def watch(self, gain: float, now: float) -> tuple[Hysteresis, bool]:
        """What is known after a look at the gain, and whether to rebalance now."""
        if self.interval_seconds == 0 or gain < self.threshold:
            return replace(self, since=None), False
        if self.since is None:
            return replace(self, since=now), False
        if now - self.since < self.interval_seconds:
            return self, False
        return replace(self, since=None), True


def _with_layers(rows: Matrix, num_layers: int) -> Matrix:
    """[num_layers, E]; no rows were routed in layers that are missing."""
    return np.pad(rows, ((0, num_layers - len(rows)), (0, 0)))


_LEAST_ROWS = 32
"""Rows per layer and expert."""
_MOST_SEEN = 64
"""Processes whose last count is kept."""
