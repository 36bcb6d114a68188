"""The pure parts: sizes of graphs, the cut of a context, tiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gpu.attention.splits import LEAST_PART, MOST_PARTS, TILE, num_parts, part_length
from actors.gpu.buckets import BATCHES, batch_bucket, parts_bucket
from actors.gpu.experts.tiles import choose_tiles


@pytest.mark.parametrize(
    ("num_rows", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 48), (256, 256), (257, 384), (513, None)]
)
def test_a_batch_is_padded_to_the_next_size(num_rows: int, bucket: int | None) -> None:
    assert batch_bucket(num_rows) == bucket


@given(st.integers(1, BATCHES[-1]))
def test_padding_at_most_doubles_a_batch(num_rows: int) -> None:
    bucket = batch_bucket(num_rows)
    assert bucket is not None and num_rows <= bucket < 2 * num_rows + (num_rows == 1)


@pytest.mark.parametrize(("parts", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (32, 32)])
def test_parts_are_padded_to_a_power_of_two(parts: int, bucket: int) -> None:
    assert parts_bucket(parts) == bucket


@given(st.integers(1, 2**20))
def test_parts_cover_a_context_and_none_is_empty(num_visible: int) -> None:
    length, parts = part_length(num_visible), num_parts(num_visible)
    assert (parts - 1) * length < num_visible <= parts * length
    assert parts <= MOST_PARTS and length % TILE == 0 and length >= LEAST_PART


MOST_SHARED_BYTES = 227 * 1024
"""Of a program on an H100."""


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
