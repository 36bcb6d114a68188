"""The router against hand-computed cases and the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.layers.router import make_route, route
from tests.reference import sparse_mixer


def scores(*values: float) -> torch.Tensor:
    return torch.tensor([[*values, *[-10.0] * (16 - len(values))]])


def test_without_rivals_both_weights_are_one() -> None:
    expert_ids, weights = route(scores(3.0, 2.0, 1.0), 0.01)
    assert expert_ids.tolist() == [[0, 1]]
    assert weights.tolist() == [[1.0, 1.0]]


def test_a_rival_inside_the_window_takes_its_share() -> None:
    expert_ids, weights = route(scores(2.0, 1.97), 0.01)  # (2 - 1.97) / 2 = 0.015 <= 0.02
    assert expert_ids.tolist() == [[0, 1]]
    assert weights[0, 0].item() == pytest.approx(1 / (1 + math.exp(-0.03)), abs=1e-6)
    assert weights[0, 1].item() == 1.0


def test_negative_scores_are_measured_by_their_own_size() -> None:
    values = torch.full((1, 16), -9.0)
    values[0, 3], values[0, 5] = -1.0, -1.015  # 0.015 / max(1.015, -1) = 0.0148
    expert_ids, weights = route(values, 0.01)
    assert expert_ids.tolist() == [[3, 5]]
    assert weights[0, 0].item() == pytest.approx(1 / (1 + math.exp(-0.015)), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_of_equal_scores_the_lowest_ids_are_taken_and_share_the_weight(value: float) -> None:
    expert_ids, weights = route(torch.full((1, 16), value), 0.01)
    assert expert_ids.tolist() == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([1 / 16, 1 / 15])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_chooses_and_weighs_as_torch_does(dtype: torch.dtype) -> None:
    by_kernel = make_route(dtype, torch.device("cpu"))
    if by_kernel is route:
        pytest.skip("this processor or installation has no kernels")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 16, generator=generator).mul(0.3).to(dtype)
    rows[:50] = 0.0
    rows[50:60, 3:] = float("-inf")
    for jitter in (0.0, 0.01, 0.2):
        expert_ids, weights = by_kernel(rows, jitter)
        expected_ids, expected_weights = route(rows, jitter)
        assert torch.equal(expert_ids, expected_ids)
        torch.testing.assert_close(weights, expected_weights)


@settings(max_examples=200)
@given(
    values=st.lists(st.floats(-4, 4, width=32), min_size=16, max_size=16),
    jitter=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_the_reference(values: list[float], jitter: float, dtype: torch.dtype) -> None:
    row = torch.tensor([values]).to(dtype)
    expected = sparse_mixer(row, jitter)
    expert_ids, weights = route(row, jitter)
    assert torch.equal(expert_ids, expected.expert_ids)
    torch.testing.assert_close(weights, expected.weights)
