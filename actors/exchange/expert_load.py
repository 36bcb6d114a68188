"""How many rows each expert gets, per layer."""

from __future__ import annotations

import numpy as np

from actors.exchange.row_assignment import Ids


class ExpertLoad:
    """Counts routes by layer and expert. One thread counts, any thread may read."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self._rows: Ids = np.zeros((0, num_experts), dtype=np.int64)

    def table(self, num_layers: int) -> Ids:
        """The counters [layers, E], grown to at least `num_layers` rows.

        Growing returns a new array; callers must not keep the old array.
        """
        if num_layers > len(self._rows):
            table = np.zeros((num_layers, self.num_experts), dtype=np.int64)
            table[: len(self._rows)] = self._rows
            self._rows = table
        return self._rows

    def count(self, layer: int, expert_ids: Ids) -> None:
        """Count routes [T, K]; every id must be valid."""
        self.table(layer + 1)[layer] += np.bincount(expert_ids.reshape(-1), minlength=self.num_experts)

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Rows by [layer][expert] since the start."""
        return tuple(map(tuple, self._rows.tolist()))
