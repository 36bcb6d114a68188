"""Adding up a token's results, the same way for every transport."""

from __future__ import annotations

import torch


def add_choices(results: torch.Tensor, num_choices: int) -> torch.Tensor:
    """results [T * K, H], row-major -> [T, H], added in the order of K in the results' dtype."""
    results = results.view(-1, num_choices, results.shape[1])
    total = results[:, 0]
    for choice in range(1, results.shape[1]):
        total = total + results[:, choice]
    return total
