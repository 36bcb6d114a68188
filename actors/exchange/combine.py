"""Adds up a token's results, in the same way for every transport.

Legend: T tokens, H hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from actors.exchange.row_assignment import Ids


def add_choices(results: torch.Tensor, num_choices: int) -> torch.Tensor:
    """Sum of each token's results: results [T * K, H], row-major -> [T, H].

    Results are added in the order of K, in their own dtype.
    """
    return _add([results[choice::num_choices] for choice in range(num_choices)])


def add_arrived(
    arrived: torch.Tensor, targets: Sequence[Ids | Sequence[int]], num_choices: int
) -> torch.Tensor:
    """`add_choices` for results [T * K, H] in the order of their arrival.

    `targets` has, stretch by stretch, the index that each result would have in row-major order. Together they
    are a permutation of 0 .. T * K - 1.
    """
    sources = np.empty(len(arrived), dtype=np.int64)
    if targets:
        sources[np.concatenate(targets)] = np.arange(len(arrived))
    by_choice = torch.from_numpy(sources).to(arrived.device).view(-1, num_choices)
    # Gather instead of scatter: index_select copies whole rows, index_copy_ on a CPU single elements.
    return _add([arrived.index_select(0, by_choice[:, choice]) for choice in range(num_choices)])


def add_one(arrived: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """`add_arrived` for one token, in a fraction of the time: results [K, H], targets [K] -> [1, H]."""
    total: torch.Tensor | None = None
    for choice in range(len(targets)):
        source = targets.index(choice)
        part = arrived[source : source + 1]
        total = part if total is None else total + part
    assert total is not None
    return total


def _add(choices: Sequence[torch.Tensor]) -> torch.Tensor:
    total = choices[0]
    for choice in choices[1:]:
        total = total + choice
    return total
