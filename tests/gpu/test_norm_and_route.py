"""Compares the kernel for sum, norm, gate and router with the separate operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.checkpoint.weights import Norm
from actors.dense.layers.router import route
from actors.gpu.norm_and_route import fits, norm_and_route

pytestmark = MARKS


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "num_experts"), [(1, 4096, 16), (9, 1000, 16), (5, 72, 6), (40, 1000, 64)]
)
def test_it_agrees_with_the_operations_one_by_one(
    num_tokens: int, hidden: int, num_experts: int, dtype: torch.dtype
) -> None:
    x, added = (torch.randn(num_tokens, hidden).to(dtype) for _ in range(2))
    norm = Norm((torch.rand(hidden) + 0.5).to(dtype), torch.randn(hidden).to(dtype))
    gate = (torch.randn(num_experts, hidden) * 0.3).to(dtype)
    there = Norm(*(part.to(DEVICE) for part in norm))
    total, normed, ids, weights = (
        part.cpu()
        for part in norm_and_route(x.to(DEVICE), added.to(DEVICE), there, 1e-5, gate.to(DEVICE), 0.01)
    )
    assert torch.equal(total, x + added)
    expected = F.layer_norm((x + added).float(), (hidden,), norm.weight.float(), norm.bias.float(), 1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert (normed.float() - expected).norm() <= tolerance * expected.norm()
    scores = F.linear(normed.double(), gate.double())
    expected_ids, expected_weights = route(scores.to(dtype), 0.01)
    # In half precision the last bit of a sum may decide between two experts with nearly equal scores.
    is_same = (ids == expected_ids).all(dim=1)
    regret = scores.gather(1, expected_ids) - scores.gather(1, ids)
    assert (regret.abs() <= (1e-4 if dtype == torch.float32 else 0.02) * scores.abs().amax()).all()
    assert is_same.sum() >= 0.8 * num_tokens
    assert torch.allclose(weights[is_same], expected_weights[is_same], atol=0.06 if dtype == HALF else 1e-3)


def test_of_equal_scores_the_lowest_id_is_taken_first() -> None:
    x = torch.randn(3, 64, device=DEVICE)
    norm = Norm(torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE))
    gate = torch.ones(5, 64, device=DEVICE)
    *_, ids, weights = norm_and_route(x, x, norm, 1e-5, gate, 0.01)
    assert ids.tolist() == [[0, 1]] * 3
    expected = route(torch.zeros(1, 5), 0.01)[1]
    assert torch.allclose(weights.cpu(), expected.expand(3, 2))


def test_phi_s_gate_fits_and_one_of_four_times_the_experts_does_not() -> None:
    assert fits(16, 4096) and not fits(64, 4096) and not fits(17, 4096)
