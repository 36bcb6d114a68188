"""Decides which dense actor computes the next sequence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_WAITING_COSTS = 2.0
"""Cost of a waiting sequence in units of a running sequence: a further sequence would have to wait behind
it."""
_PREFIX_TOKENS = 128
"""Cached prompt tokens that offset one running sequence."""
_MAX_PREFIX_GAIN = 8
"""Most running sequences that cached tokens can offset. Beyond that the loads of the dense actors would
differ too much."""
_CACHE_STEPS = 8
"""The used part of the cache is rounded down to eighths, so that smaller differences decide nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A dense actor that is ready, as an ingress replica knows it."""

    index: int
    running: int
    waiting: int
    unreported: int
    """Sequences that this ingress replica has submitted and that the actor's last load does not include
    yet."""
    free_blocks: int
    total_blocks: int
    held_tokens: int = 0
    """Number of first tokens of the new sequence that are probably in the actor's cache."""


def cost(candidate: Candidate) -> float:
    """Return the cost of a dense actor in units of a running sequence. A lower cost means an earlier start.

    Every preference for a dense actor belongs here: its advantages are subtracted from the cost.
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
    """Return the index of the cheapest dense actor; among equals the next after `last_index`, round robin.

    `candidates` must not be empty.
    """
    least = min(cost(candidate) for candidate in candidates)
    cheapest = sorted(candidate.index for candidate in candidates if cost(candidate) == least)
    return next((index for index in cheapest if index > last_index), cheapest[0])
