"""Which rows go to which expert actor. Pure.

Legend: T tokens, K experts per token, A expert actors, t tokens of one actor, n results of one actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]


class Share(NamedTuple):
    """One actor's share of a dispatch."""

    actor: int
    """Its place in the owner table's count, not its index in the cluster."""
    tokens: Ids
    """[t] rows that it gets, ascending, each once."""
    expert_ids: Ids
    """[t, K], -1 where the expert is another actor's."""
    targets: Ids
    """[n] into T * K: where its results belong, in the order in which it returns them."""


def owner_table(experts_of_actor: Sequence[Sequence[int]], num_experts: int) -> Ids:
    """[E]: the actor that is asked for an expert, the first that holds it.

    Raises ValueError for an expert that nobody holds.
    """
    owners = np.full(num_experts, -1, dtype=np.int64)
    for actor, experts in reversed(list(enumerate(experts_of_actor))):
        owners[list(experts)] = actor
    if (owners < 0).any():
        raise ValueError(f"expert {int(np.argmin(owners))} is held by no expert actor")
    return owners


def split_rows(expert_ids: Ids, owners: Ids, num_actors: int) -> list[Share]:
    """Shares of those actors that get anything, by actor. expert_ids [T, K]."""
    owner = owners[expert_ids]  # [T, K]
    shares = []
    for actor in range(num_actors):
        is_here = owner == actor
        targets = np.flatnonzero(is_here)
        if len(targets):
            tokens = np.flatnonzero(is_here.any(axis=1))
            ids = np.where(is_here, expert_ids, -1)[tokens]
            shares.append(Share(actor=actor, tokens=tokens, expert_ids=ids, targets=targets))
    return shares
