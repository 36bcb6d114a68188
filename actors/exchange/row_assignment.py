"""Decides which rows go to which holder of an expert. Pure.

Legend: T tokens, K experts per token, E experts, t tokens of one holder, n results of one holder.

A holder is a number that the caller has given it; NOBODY stands for no holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

NOBODY = -1

MIN_PART_ROWS = 64
"""Rows at which an expert's product takes about as long as reading its weights. Each row costs two operations
per weight of two bytes, so this is peak operations per second / memory bytes per second: 13 with two CPU
threads (400 GFLOP/s, 30 GB/s), 300 on an H100. With fewer than twice as many rows, a second holder would only
read the weights a second time."""


class Share(NamedTuple):
    """One holder's share of a dispatch."""

    holder: int
    tokens: Ids
    """[t] indices of the rows that the holder gets, ascending, each once."""
    expert_ids: Ids
    """[t, K]; -1 for an expert that another holder computes."""
    targets: Ids
    """[n] indices into T * K: where the results belong, in the order in which the holder returns them."""


class Portion(NamedTuple):
    """A number of rows of one expert, and the holder that gets them."""

    expert: int
    holder: int
    num_rows: int


def owner_table(experts_of_actor: Sequence[Sequence[int]], num_experts: int) -> Ids:
    """The table [E] of owners: for each expert the first actor that holds it.

    Raises ValueError for an expert that no actor holds.
    """
    owners = np.full(num_experts, NOBODY, dtype=np.int64)
    for actor, experts in reversed(list(enumerate(experts_of_actor))):
        owners[list(experts)] = actor
    if (owners < 0).any():
        raise ValueError(f"expert {int(np.argmin(owners))} is held by no expert actor")
    return owners


def portion_out(counts: Sequence[tuple[int, int]], holders: Sequence[Sequence[int]]) -> list[Portion]:
    """Distribute the rows of experts over their holders, so that all holders have about the same work.

    `counts` has (expert, number of rows), each expert once; `holders` has the holders of each expert. The
    portions of an expert come in the order of its holders; an expert without holders gets a portion for
    NOBODY. An expert with fewer than 2 * MIN_PART_ROWS rows stays whole; more rows are distributed in parts.
    The work of a holder is its rows, plus MIN_PART_ROWS for each expert whose weights it reads.
    """
    work: dict[int, int] = {}
    portions: list[Portion] = []
    # First experts with a single holder, then those with many rows; the small ones even out the differences.
    for expert, count in sorted(counts, key=lambda item: (len(holders[item[0]]) > 1, -item[1], item[0])):
        able = holders[expert]
        if len(able) < 2:
            holder = able[0] if able else NOBODY
            work[holder] = work.get(holder, 0) + MIN_PART_ROWS + count
            portions.append(Portion(expert, holder, count))
            continue
        given = dict.fromkeys(able, 0)
        # Among equally busy holders the expert's number decides, so that several dense actors do not all ask
        # the same holder.
        first = expert % len(able)
        order = [*able[first:], *able[:first]]
        part = MIN_PART_ROWS if count >= 2 * MIN_PART_ROWS else count
        for start in range(0, count - part + 1, part):
            rows = part if count - start >= 2 * part else count - start
            chosen = min(order, key=lambda h: work.get(h, 0) + (0 if given[h] else MIN_PART_ROWS))
            work[chosen] = work.get(chosen, 0) + (0 if given[chosen] else MIN_PART_ROWS) + rows
            given[chosen] += rows
        portions += [Portion(expert, holder, rows) for holder, rows in given.items() if rows]
    return portions


def assign_rows(expert_ids: Ids, portions: Sequence[Portion], num_experts: int) -> Ids:
    """The holder of each route, [T, K]; NOBODY for an expert without a portion and for expert id -1.

    The rows of an expert fill its portions in order.
    """
    holder_of = np.full(num_experts + 1, NOBODY, dtype=np.int64)  # id -1 reads the last entry
    split: dict[int, list[Portion]] = {}
    for portion in portions:
        if holder_of[portion.expert] != NOBODY:
            split.setdefault(portion.expert, []).append(portion)
        else:
            holder_of[portion.expert] = portion.holder
    assigned = holder_of[expert_ids]
    flat = assigned.reshape(-1)
    for expert, others in split.items():
        positions = np.flatnonzero(expert_ids.reshape(-1) == expert)
        start = len(positions) - sum(portion.num_rows for portion in others)
        for portion in others:
            flat[positions[start : start + portion.num_rows]] = portion.holder
            start += portion.num_rows
    return assigned


def split_rows(expert_ids: Ids, assigned: Ids) -> list[Share]:
    """The shares of all holders that get rows, in the order of their numbers. Both arrays are [T, K]."""
    shares = []
    is_asked = np.bincount(assigned.reshape(-1) + 1)[1:]
    for holder in np.flatnonzero(is_asked).tolist():
        is_here = assigned == holder
        targets = np.flatnonzero(is_here)
        tokens = np.flatnonzero(is_here.any(axis=1))
        ids = np.where(is_here, expert_ids, -1)[tokens]
        shares.append(Share(holder=holder, tokens=tokens, expert_ids=ids, targets=targets))
    return shares
