"""The order in which experts see their rows: expert by expert, each in token order."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]


def sort_by_slot(slots: Indices, num_results: int) -> tuple[Indices, Indices]:
    """(order, source_of), [N] each: the valid entries by slot and then by position, and for each result, row-major,
    its place in that order.

    Raises ValueError for an expert of another rank and for a wrong num_results.
    """
    order = np.argsort(slots, kind="stable")
    if slots[order[0]] < -1:
        raise ValueError("expert_ids names an expert that is not on this rank")
    num_elsewhere = len(slots) - num_results
    order = order[num_elsewhere:]
    if slots[order[0]] < 0 or (num_elsewhere and np.count_nonzero(slots >= 0) != num_results):
        raise ValueError(f"num_results is {num_results}, expected the number of expert ids that are not -1")
    source_of = np.empty_like(slots)
    source_of[order] = np.arange(num_results)
    return order, source_of[slots >= 0]
