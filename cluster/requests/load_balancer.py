"""Which dense actor computes the next sequence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_WAITING_COSTS = 2.0
"""A sequence that waits says more than one that runs: a further one waits behind it."""
_PREFIX_TOKENS = 128
"""So many tokens of a prompt that need not be computed again outweigh one running sequence,"""
_MAX_PREFIX_GAIN = 8
"""but no more than so many: past that the dense actors' loads differ too much."""
_CACHE_STEPS = 8
"""Differences in free blocks below an eighth of the cache decide nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One dense actor that would compute now, as an ingress knows it."""

    index: int
    running: int
    waiting: int
    unreported: int
    """Sequences of this ingress that were submitted there and are in no load yet that the actor told."""
    free_blocks: int
    total_blocks: int
    held_tokens: int = 0
    """Of the sequence to be placed, the first tokens that are probably computed there."""


def cost(candidate: Candidate) -> float:
    """The lower, the sooner a sequence is computed there; in units of a running sequence.

    The one place where a preference for a dense actor belongs: what speaks for it is subtracted here.
    """
    used_share = 1.0 - candidate.free_blocks / max(1, candidate.total_blocks)
    return (
        candidate.running
        + candidate.unreported
        + _WAITING_COSTS * candidate.waiting
        + int(_CACHE_STEPS * used_share) / _CACHE_STEPS
        - min(candidate.held_tokens // _PREFIX_TOKENS, _MAX_PREFIX_GAIN)
    )


def choose(candidates: Sequence[Candidate], last_index: int) -> int:
    """The index of the cheapest dense actor; of several, the next after `last_index`, round robin.

    `candidates` must not be empty.
    """
    least = min(cost(candidate) for candidate in candidates)
    cheapest = sorted(candidate.index for candidate in candidates if cost(candidate) == least)
    return next((index for index in cheapest if index > last_index), cheapest[0])
