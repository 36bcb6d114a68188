"""Tests the sizes of the tiles in which experts' matrices are multiplied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.gpu.experts.tiles import choose_tiles

MOST_SHARED_BYTES = 227 * 1024
"""Largest shared memory of a program on an H100, in bytes."""


@given(st.integers(1, 20_000), st.integers(1, 64), st.sampled_from([2, 4]), st.booleans())
def test_tiles_fit_and_grow_with_the_entries(
    num_entries: int, num_slots: int, item_bytes: int, is_quantized: bool
) -> None:
    tiles = choose_tiles(num_entries, num_slots, item_bytes, is_quantized)
    more = choose_tiles(2 * num_entries, num_slots, item_bytes, is_quantized)
    for tile, larger, num_weights in zip(tiles, more, (2, 1), strict=True):
        numbers = tile.rows + num_weights * tile.outputs
        assert tile.num_stages * numbers * tile.inputs * item_bytes <= MOST_SHARED_BYTES
        assert tile.rows <= larger.rows
        assert tile.rows >= min(128, num_entries / num_slots / 4)
