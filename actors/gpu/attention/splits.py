"""Cuts a decoding sequence's context into parts whose attention is computed in parallel. Pure.

A part has at least 128 positions, and a sequence at most 32 parts. The cut depends only on the sequence's own
number of visible positions, so that its sums, and the bits of its result, do not depend on the rest of the
batch.
"""

from __future__ import annotations

LEAST_PART = 128
MOST_PARTS = 32
TILE = 64
"""Number of positions that a kernel takes at a time; the length of a part is a multiple of it."""


def part_length(num_visible: int) -> int:
    """Return the positions per part of a sequence that sees `num_visible` positions; kernels do the same."""
    tiles = -(-num_visible // (MOST_PARTS * TILE))
    return max(LEAST_PART, tiles * TILE)


def num_parts(num_visible: int) -> int:
    return -(-num_visible // part_length(num_visible))
