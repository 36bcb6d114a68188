"""Tests how a context is cut into parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.gpu.attention.splits import LEAST_PART, MOST_PARTS, TILE, num_parts, part_length


@given(st.integers(1, 2**20))
def test_parts_cover_a_context_and_none_is_empty(num_visible: int) -> None:
    length, parts = part_length(num_visible), num_parts(num_visible)
    assert (parts - 1) * length < num_visible <= parts * length
    assert parts <= MOST_PARTS and length % TILE == 0 and length >= LEAST_PART
