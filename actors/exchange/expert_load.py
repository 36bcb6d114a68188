"""How many rows each expert gets, per layer."""

from __future__ import annotations

import numpy as np

from actors.exchange.row_assignment import Ids


class ExpertLoad:
    """Counts routes. One thread counts, any may look."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self._rows: Ids = np.zeros((0, num_experts), dtype=np.int64)

    def table(self, num_layers: int) -> Ids:
        """[layers, E] for so many layers or more, for whoever counts by adding to it; another one after a call for more."""
        if num_layers > len(self._rows):
            table = np.zeros((num_layers, self.num_experts), dtype=np.int64)
            table[: len(self._rows)] = self._rows
            self._rows = table
        return self._rows

    def count(self, layer: int, expert_ids: Ids) -> None:
        """Take note of routes [T, K], all of them valid."""
        self.table(layer + 1)[layer] += np.bincount(expert_ids.reshape(-1), minlength=self.num_experts)

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """[layers][experts] since the start."""
        return tuple(map(tuple, self._rows.tolist()))
