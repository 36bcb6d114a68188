"""Tests the sizes to which steps are padded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gpu.buckets import BATCHES, batch_bucket, parts_bucket


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
