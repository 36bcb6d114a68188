"""How many rows each expert gets, per layer."""

from __future__ import annotations

import numpy as np

from actors.exchange.split import Ids


class ExpertLoad:
    """Counts routes. One thread counts, any may look."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self._of_layer: dict[int, Ids] = {}

    def count(self, layer: int, expert_ids: Ids) -> None:
        """Take note of routes [T, K], all of them valid."""
        counts = np.bincount(expert_ids.reshape(-1), minlength=self.num_experts)
        present = self._of_layer.get(layer)
        if present is None:
            self._of_layer[layer] = counts
        else:
            present += counts

    def add(self, rows: Ids) -> None:
        """Take note of so many rows of each expert, [layers, E] from layer 0 on."""
        for layer, counts in enumerate(rows):
            if not counts.any():
                continue
            present = self._of_layer.get(layer)
            if present is None:
                self._of_layer[layer] = counts.copy()
            else:
                present += counts

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """[layers][experts] since the start."""
        return tuple(tuple(counts.tolist()) for _, counts in sorted(self._of_layer.items()))
