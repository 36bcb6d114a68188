"""How a decoding sequence's context is cut into parts that are attended to side by side. Pure.

A part has 128 positions or more, and a sequence at most 32 parts. The cut depends on the sequence's own number of visible
positions alone, so that its sums, and its bits, do not depend on what else is in the batch.
"""

from __future__ import annotations

LEAST_PART = 128
MOST_PARTS = 32
TILE = 64
"""Positions that a kernel takes at a time; parts are multiples of it."""


def part_length(num_visible: int) -> int:
    """Positions per part of a sequence that sees num_visible of them. The kernels compute the same."""
    tiles = -(-num_visible // (MOST_PARTS * TILE))
    return max(LEAST_PART, tiles * TILE)


def num_parts(num_visible: int) -> int:
    return -(-num_visible // part_length(num_visible))
