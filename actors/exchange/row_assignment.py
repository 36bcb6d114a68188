"""Which rows go to which holder of an expert. Pure.

Legend: T tokens, K experts per token, E experts, t tokens of one holder, n results of one holder.

A holder is known by its number in the caller's own count; NOBODY is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

NOBODY = -1

MIN_PART_ROWS = 64
"""Rows at which an expert's product takes about as long as reading its weights: each row costs two operations per weight
of two bytes, so it is peak operations per second / memory bytes per second; 13 with two CPU threads (400 GFLOP/s, 30
GB/s), 300 on an H100. With fewer rows than two such parts, a second holder would only read the weights a second time."""


class Share(NamedTuple):
    """One holder's share of a dispatch."""

    holder: int
    tokens: Ids
    """[t] rows that it gets, ascending, each once."""
    expert_ids: Ids
    """[t, K], -1 where the expert is not for this holder."""
    targets: Ids
    """[n] into T * K: where its results belong, in the order in which it returns them."""


class Portion(NamedTuple):
    """Some rows of one expert, and who gets them."""

    expert: int
    holder: int
    num_rows: int


def owner_table(experts_of_actor: Sequence[Sequence[int]], num_experts: int) -> Ids:
    """[E]: the actor that is asked for an expert, the first that holds it.

    Raises ValueError for an expert that nobody holds.
    """
    owners = np.full(num_experts, NOBODY, dtype=np.int64)
    for actor, experts in reversed(list(enumerate(experts_of_actor))):
        owners[list(experts)] = actor
    if (owners < 0).any():
        raise ValueError(f"expert {int(np.argmin(owners))} is held by no expert actor")
    return owners


def portion_out(counts: Sequence[tuple[int, int]], holders: Sequence[Sequence[int]]) -> list[Portion]:
    """Rows of experts over their holders, so that all have about the same work.

    counts: (expert, number of rows), each expert once; holders: by expert. An expert's portions come in the order of its
    holders. One without holders gets a portion for NOBODY. An expert with fewer than 2 * MIN_PART_ROWS rows stays whole;
    those with more are dealt out in parts. Work is rows, plus MIN_PART_ROWS for each expert whose weights are read.
    """
    work: dict[int, int] = {}
    portions: list[Portion] = []
    # Who has no choice comes first, then the large ones: what is small evens out the rest.
    for expert, count in sorted(counts, key=lambda item: (len(holders[item[0]]) > 1, -item[1], item[0])):
        able = holders[expert]
        if len(able) < 2:
            holder = able[0] if able else NOBODY
            work[holder] = work.get(holder, 0) + MIN_PART_ROWS + count
            portions.append(Portion(expert, holder, count))
            continue
        given = dict.fromkeys(able, 0)
        # Of equally busy holders the expert's number decides, so that several dense actors do not all ask the same one.
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
    """[T, K]: the holder of each route; NOBODY for those of experts without a portion, and for expert id -1.

    The rows of an expert go to its portions in order: the first ones to the first.
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
    """Shares of those holders that get anything, by number. expert_ids and assigned [T, K]."""
    shares = []
    is_asked = np.bincount(assigned.reshape(-1) + 1)[1:]
    for holder in np.flatnonzero(is_asked).tolist():
        is_here = assigned == holder
        targets = np.flatnonzero(is_here)
        tokens = np.flatnonzero(is_here.any(axis=1))
        ids = np.where(is_here, expert_ids, -1)[tokens]
        shares.append(Share(holder=holder, tokens=tokens, expert_ids=ids, targets=targets))
    return shares
